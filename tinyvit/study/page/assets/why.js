// How a number was computed: its terms with their values. Each term can be followed, back to the loss or to a pixel.

const SHOWN_TERMS = 8;

function why(v, flat) {
  const array = contentOf(v),
    recorded = array.data[flat],
    unfolded = termsOf(v, flat);
  const head = el("h3", {}, "Why ", el("output", {}, short(recorded, 5)), "?");
  const body = explanation(v, flat, unfolded);
  const back = S.trail.length ? el("button", { class: "tool", onclick: goBack }, "← back along the trail") : null;
  return [head, ...body, back].filter(Boolean);
}

// The paragraphs for each way in which a number can come about (`how`), from its value v, element and terms u.
const EXPLANATIONS = {
  leaf: (v) => [el("p", {}, leafWords(v))],
  seed: (v) => [el("p", {}, seedWords(contentOf(v)))],
  unexplained: () => [el("p", {}, "The trace recorded this number, but the page does not have the steps that computed it.")],
  hook: () => [el("p", {}, "A hook that the program registered returned this in place of the gradient.")],
  missing: () => [el("p", {}, "The operands did not fit on this page; it has only their statistics.")],
  constant: () => [el("p", {}, "A constant that was not read from any array, such as the padding around an image.")],
  kernel: (v, flat, u) => [
    el(
      "p",
      {},
      `The kernel ${T.ops[originOf(sourceOf(v))[1]].kernel} computed this number. The rule, step by step, gives `,
      chip({ v: u.rule, flat, name: nameOf(u.rule) || nameOf(v) }),
    ),
  ],
  none: (v, flat, u) => [
    el("p", {}, `${u.step.i} = ${u.step.w}: the page does not unfold this step element by element. Open its operands in the rule.`),
  ],
  moved: (v, flat, u) => [
    el("p", {}, "This is an element of another array, in another place: "),
    el("p", { class: "equation" }, chip(u.terms[0].cells[0])),
    sumVerdict(v, flat, u),
  ],
  max: extremeWords,
  min: extremeWords,
  each: (v, flat, u) => [
    el(
      "p",
      { class: "equation" },
      el("b", {}, `${S.a}[${unravel(flat, contentOf(v).shape).join(", ")}]`),
      " = ",
      expression(u),
    ),
    el("p", { class: "source" }, `${u.step.i} = ${u.step.w}`),
    sumVerdict(v, flat, u),
  ],
  sum: (v, flat, u) => [...termsWords(u), sumVerdict(v, flat, u)],
};

const explanation = (v, flat, u) => EXPLANATIONS[u.how](v, flat, u);

function extremeWords(v, flat, u) {
  return [
    el("p", {}, `The ${u.how === "max" ? "largest" : "smallest"} of ${u.of} numbers: `),
    el(
      "p",
      { class: "equation" },
      u.terms.map((t) => chip(t.cells[0])),
    ),
    sumVerdict(v, flat, u),
  ];
}

// A sum: the largest terms, and the sum of the others.
function termsWords(u) {
  const order = u.terms.slice().sort((a, b) => Math.abs(b.value) - Math.abs(a.value)),
    rest = order.slice(SHOWN_TERMS);
  const total = rest.reduce((s, t) => s + t.value, 0);
  const term = (t) =>
    el(
      "li",
      {},
      t.cells.flatMap((c, i) => [i ? " × " : null, chip(c)]),
      t.cells.length > 1 ? el("span", { class: "value" }, `= ${short(t.value, 5)}`) : null,
    );
  return [
    el("p", {}, `${u.words}${u.terms.length > 1 ? `, ${u.terms.length} terms, the largest first` : ""}:`),
    el("ul", { class: "terms" }, order.slice(0, SHOWN_TERMS).map(term)),
    rest.length ? el("p", { class: "rest" }, `… ${rest.length} more, together ${short(total, 5)}`) : null,
  ];
}

const seedWords = (array) =>
  array.size === 1 && array.data[0] === 1
    ? "This is the slope of the loss with respect to itself: 1. Every gradient on this page comes from this 1."
    : "The backward pass started from this gradient, which the program passed in.";

// The terms compared with the recorded number: equal up to the rounding of its dtype, or the page says otherwise.
function sumVerdict(v, flat, u) {
  const ok = reproduces(v, flat, u),
    array = contentOf(v);
  if (ok === null)
    return el(
      "p",
      { class: "verdict" },
      "Recorded as ",
      el("b", {}, exact(array.data[flat], array.code)),
      "; the page does not recompute functions.",
    );
  const total = u.total === undefined ? "" : short(u.total, 8);
  return el(
    "p",
    { class: `verdict ${ok ? "agrees" : "wrong"}` },
    ok
      ? `= ${total} ✓ recorded: ${exact(array.data[flat], array.code)}`
      : `The terms give ${total}, but the trace recorded ${exact(array.data[flat], array.code)}.`,
  );
}

function leafWords(v) {
  const name = nameOf(v);
  if (name === "image") return "A pixel of the image, normalized. The backward pass ends here.";
  if (T.about.parameters && T.about.parameters.includes(name))
    return `An element of ${name}, a parameter that was learned. Its gradient is ${"d" + name}.`;
  return `${name} came from outside the trace.`;
}

// How strongly a sign binds, and how strongly its operand i must bind to need no parentheses.
const binds = (sign) => ({ "+": 1, "-": 1, "*": 2, "/": 2, neg: 2 })[sign] || 9;
const needs = (sign, i) => ({ "+": 1, "-": i ? 2 : 1, "*": 2, "/": i ? 3 : 2, neg: 3 })[sign] || 0;
const SIGNS = { "+": " + ", "-": " − ", "*": " × ", "/": " / " };

// An elementwise expression with its numbers. Operands that the rule gave no name are written out.
function expression(u, depth = 0) {
  const parts = u.cells.map((c, i) => {
    const inner = c.v !== undefined && !c.name && depth < 3 ? termsOf(c.v, c.flat) : null;
    if (inner && inner.how === "each")
      return binds(inner.sign) < needs(u.sign, i)
        ? el("span", {}, "(", expression(inner, depth + 1), ")")
        : expression(inner, depth + 1);
    return c.v === undefined ? el("span", { class: "number" }, short(c.c, 6)) : chip(c);
  });
  if (u.sign === "neg") return el("span", {}, "−", parts[0]);
  if (SIGNS[u.sign]) return el("span", {}, parts[0], SIGNS[u.sign], parts[1]);
  return el(
    "span",
    {},
    `${u.sign}(`,
    parts.flatMap((p, i) => [i ? ", " : null, p]),
    ")",
  );
}

// A number with its name, which can be followed further back.
function chip(cell) {
  cell = settled(cell);
  const array = contentOf(cell.v),
    index = unravel(cell.flat, array.shape),
    step = stepOf(cell.v);
  const name = cell.name || (step ? step.i : nameOf(cell.v)) || "it";
  return el(
    "button",
    {
      class: "chipcell",
      title: `${name}[${index.join(", ")}] = ${exact(array.data[cell.flat], array.code)}`,
      onclick: () => follow(cell),
    },
    el(
      "small",
      {},
      `${name.length > 22 ? name.slice(0, 20) + "…" : name}${index.length ? `[${index.join(",")}]` : ""}`,
    ),
    el("span", {}, array.data ? short(array.data[cell.flat], 5) : "?"),
  );
}

function follow(cell) {
  const home = homeOf(cell.v);
  if (!home || !home.a) return;
  const here = { op: S.op, dir: S.dir, a: S.a, index: S.index };
  go(
    {
      view: "walk",
      op: home.op,
      dir: home.dir,
      a: home.a,
      index: unravel(cell.flat, contentOf(cell.v).shape),
      trail: [...S.trail, here],
    },
    true,
    "why",
  );
}

function goBack() {
  const trail = S.trail.slice(),
    last = trail.pop();
  go({ ...last, trail }, true, "why");
}
