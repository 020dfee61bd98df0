// Why a number is what it is: its terms with their values, each to be followed on, back to the loss or to a pixel.

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

function explanation(v, flat, u) {
  const array = contentOf(v),
    verdict = sumVerdict(v, flat, u);
  if (u.how === "leaf") return [el("p", {}, leafWords(v))];
  if (u.how === "seed")
    return [
      el(
        "p",
        {},
        array.size === 1 && array.data[0] === 1
          ? "This is the slope of the loss for itself: 1. Every gradient of this page is this 1, carried back."
          : "Here the way back begins: this gradient was given from outside.",
      ),
    ];
  if (u.how === "unexplained") return [el("p", {}, "It was recorded, but the steps that gave it are not on this page.")];
  if (u.how === "hook") return [el("p", {}, "A hook that the program registered made this of what came back.")];
  if (u.how === "missing")
    return [el("p", {}, "What it is made of did not fit on this page: only its statistics are here.")];
  if (u.how === "constant")
    return [el("p", {}, "A constant: nothing was read here (the padding around an image, say).")];
  if (u.how === "kernel")
    return [
      el(
        "p",
        {},
        `Computed by the kernel ${T.ops[originOf(sourceOf(v))[1]].kernel}. The rule gives, step by step: `,
        chip({ v: u.rule, flat, name: nameOf(u.rule) || nameOf(v) }),
      ),
    ];
  if (u.how === "none")
    return [
      el("p", {}, `${u.step.s}: this step is not unfolded element by element; open what goes into it from the rule.`),
    ];
  if (u.how === "moved")
    return [
      el("p", {}, "It is an element of another array, in another place: "),
      el("p", { class: "equation" }, chip(u.terms[0].cells[0])),
      verdict,
    ];
  if (u.how === "max" || u.how === "min")
    return [
      el("p", {}, `The ${u.how === "max" ? "largest" : "smallest"} of ${u.of}: `),
      el(
        "p",
        { class: "equation" },
        u.terms.map((t) => chip(t.cells[0])),
      ),
      verdict,
    ];
  if (u.how === "each")
    return [
      el(
        "p",
        { class: "equation" },
        el("b", {}, `${S.a}[${unravel(flat, array.shape).join(", ")}]`),
        " = ",
        expression(u),
      ),
      el("p", { class: "source" }, u.step.s),
      verdict,
    ].filter(Boolean);
  const order = u.terms.slice().sort((a, b) => Math.abs(b.value) - Math.abs(a.value)),
    first = order.slice(0, SHOWN_TERMS),
    rest = order.slice(SHOWN_TERMS);
  return [
    el("p", {}, `${u.words}${u.terms.length > 1 ? `, ${u.terms.length} terms, the largest first` : ""}:`),
    el(
      "ul",
      { class: "terms" },
      first.map((t) =>
        el(
          "li",
          {},
          t.cells.flatMap((c, i) => [i ? " × " : null, chip(c)]),
          t.cells.length > 1 ? el("span", { class: "value" }, `= ${short(t.value, 5)}`) : null,
        ),
      ),
    ),
    rest.length
      ? el(
          "p",
          { class: "rest" },
          `… ${rest.length} more, together ${short(
            rest.reduce((s, t) => s + t.value, 0),
            5,
          )}`,
        )
      : null,
    verdict,
  ].filter(Boolean);
}

// Terms set against the record: equal up to the rounding of the recorded type, or the page says that they are not.
function sumVerdict(v, flat, u) {
  const ok = reproduces(v, flat, u),
    array = contentOf(v);
  if (ok === null)
    return el(
      "p",
      { class: "verdict" },
      "Recorded as ",
      el("b", {}, exact(array.data[flat], array.code)),
      "; a function is not computed again here.",
    );
  const total = u.total === undefined ? "" : short(u.total, 8);
  return el(
    "p",
    { class: `verdict ${ok ? "agrees" : "wrong"}` },
    ok
      ? `= ${total} ✓ recorded: ${exact(array.data[flat], array.code)}`
      : `The terms give ${total}, but ${exact(array.data[flat], array.code)} was recorded.`,
  );
}

function leafWords(v) {
  const name = nameOf(v);
  if (name === "image") return "A pixel of the image, normalized: here the way back ends.";
  if (T.about.parameters && T.about.parameters.includes(name))
    return `An element of ${name}, a parameter: it was learned. Its gradient is ${"d" + name}.`;
  return `${name}: given from outside.`;
}

// How strongly a sign binds, and how strongly its operand number i must bind to need no parentheses.
const binds = (sign) => ({ "+": 1, "-": 1, "*": 2, "/": 2, neg: 2 })[sign] || 9;
const needs = (sign, i) => ({ "+": 1, "-": i ? 2 : 1, "*": 2, "/": i ? 3 : 2, neg: 3 })[sign] || 0;
const SIGNS = { "+": " + ", "-": " − ", "*": " × ", "/": " / " };

// An elementwise expression with its numbers in place; what the rule gave no name is written out.
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

// A number with its name, to follow further back.
function chip(cell) {
  cell = settled(cell);
  const array = contentOf(cell.v),
    index = unravel(cell.flat, array.shape),
    step = stepOf(cell.v);
  const name = cell.name || (step ? step.s : nameOf(cell.v)) || "it";
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
