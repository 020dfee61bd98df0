// The views besides the walk; here fused kernels beside the formula, questions, and what the page is.

const VIEWS = {
  __proto__: null, // so that no name is in it but these
  walk: () => [],
  start: startView,
  attention: attentionView,
  health: healthView,
  fused: fusedView,
  quiz: quizView,
  about: aboutView,
};

const buildView = () => $("view").replaceChildren(...VIEWS[S.view]());

// Fused against plain ------------------------------------------------------------------------------------------------

function fusedView() {
  if (!T.fused.length)
    return [
      el("h2", {}, "Fused against plain"),
      el("p", { class: "doc" }, "No operation of this trace has a fused kernel here."),
    ];
  return [
    el("h2", {}, "Fused against plain"),
    el(
      "p",
      { class: "doc" },
      "A fused kernel computes the same formula in another order, keeps less and computes some of it again on the way back. Left, what the kernel holds after each tile; right, the plain formula. Every number was computed by Python when this page was written: the left by the kernel itself, on the keys it had seen so far.",
    ),
    ...T.fused.map((f) =>
      el(
        "section",
        { class: "fused" },
        el("h3", {}, f.title),
        el("p", { class: "doc" }, f.words),
        table(
          { class: "steps" },
          f.columns,
          f.rows.map((r) => row(...r.map((c) => (typeof c === "number" ? short(c, 7) : c)))),
        ),
        table(
          { class: "compare" },
          ["", "fused", "plain"],
          f.compare.map((r) => row(...r)),
        ),
      ),
    ),
  ];
}

// Questions ----------------------------------------------------------------------------------------------------------

function question(q) {
  const answer = el(
    "p",
    { class: "answer", hidden: true },
    q.why,
    " ",
    el(
      "button",
      {
        class: "link",
        onclick: () => go({ view: "walk", op: q.op, dir: q.dir, a: q.a, index: q.index || null }, true),
      },
      "look",
    ),
  );
  const options = el(
    "div",
    { class: "tools" },
    q.options.map((text, i) =>
      el(
        "button",
        {
          class: "tool",
          onclick: (e) => {
            options.querySelectorAll("button").forEach((b, k) => {
              b.disabled = true;
              if (k === q.answer) b.classList.add("right");
            });
            if (i !== q.answer) e.target.classList.add("no");
            answer.hidden = false;
            announce(i === q.answer ? "Right." : `No: ${q.options[q.answer]}.`);
          },
        },
        text,
      ),
    ),
  );
  return el("article", { class: "question" }, el("p", {}, q.text), options, answer);
}

function quizView() {
  return [
    el("h2", {}, "Predict, then look"),
    el(
      "p",
      { class: "doc" },
      "Questions made from the numbers of this page. Decide first; then the page shows the number.",
    ),
    ...T.quiz.map(question),
  ];
}

const quizFor = (op, dir) => {
  const own = T.quiz.filter((q) => q.op === op && q.dir === dir);
  return own.length ? section("questions", "Predict", ...own.map(question)) : null;
};

// About --------------------------------------------------------------------------------------------------------------

function aboutView() {
  const keys = [
    ["→ ←", "next, previous operation"],
    ["↓ ↑", "next, previous array of the card"],
    ["Home End", "first operation, last gradient rule"],
    ["b", "from an operation to its gradient rule and back"],
    ["l", "to the loss"],
    ["space", "play, pause"],
    ["/", "search"],
    ["Enter", "on an array: into it; on a cell: why"],
    ["Esc", "out of it"],
    ["t", "light or dark"],
    ["?", "this page"],
  ];
  return [
    el("h2", {}, "What this is"),
    ...T.notes.map((n) => el("p", { class: "doc" }, n)),
    el("h3", {}, "How it was made"),
    table(
      {},
      null,
      T.facts.map((f) => row(...f)),
    ),
    el("h3", {}, "Keys"),
    table(
      {},
      null,
      keys.map(([k, x]) => row(el("kbd", {}, k), x)),
    ),
    el(
      "label",
      { class: "switch" },
      el("input", { type: "checkbox", checked: keysOn, onchange: (e) => (keysOn = e.target.checked) }),
      " single keys are on",
    ),
  ];
}
