// The table of views, and three of them: fused kernels beside their formulas, questions, and about this page.

const VIEWS = {
  __proto__: null, // so that inherited names such as "constructor" are not views
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
      el("p", { class: "doc" }, "The page has no comparison of a fused kernel with its formula."),
    ];
  return [
    el("h2", {}, "Fused against plain"),
    el(
      "p",
      { class: "doc" },
      "A fused kernel computes the same formula in another order. It saves less, and computes some values again in the backward pass. Each column pair has the state of the kernel after each tile, then the value by the plain formula. Python computed every number when it wrote this page; the kernel itself ran on the keys up to each tile.",
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
      "show me",
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
            announce(i === q.answer ? "Right." : `Wrong: the answer is ${q.options[q.answer]}.`);
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
    el("h2", {}, "Answer, then look"),
    el(
      "p",
      { class: "doc" },
      "These questions are about the numbers of this page. Answer first; then the page shows the number.",
    ),
    ...T.quiz.map(question),
  ];
}

const quizFor = (op, dir) => {
  const own = T.quiz.filter((q) => q.op === op && q.dir === dir);
  return own.length ? section("questions", "Questions", ...own.map(question)) : null;
};

// About --------------------------------------------------------------------------------------------------------------

function aboutView() {
  const keys = [
    ["→ ←", "next or previous operation"],
    ["↓ ↑", "next or previous array of the card"],
    ["Home End", "first operation or last gradient rule"],
    ["b", "switch between an operation and its gradient rule"],
    ["l", "go to the loss"],
    ["space", "play or pause"],
    ["/", "search"],
    ["Enter", "open an array; on a cell, show how it was computed"],
    ["Esc", "close it"],
    ["t", "switch between light and dark"],
    ["?", "show this view"],
  ];
  return [
    el("h2", {}, "About this page"),
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
      " shortcuts of a single key are on",
    ),
  ];
}
