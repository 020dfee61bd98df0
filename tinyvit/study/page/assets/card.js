// The card of one operation, forward or backward: formula, inputs, the rule as it ran, results, check.

// The arrays of a card with unique labels: inputs, named steps, results. Links refer to arrays by these labels.
const cardCache = new Map();
function cardArrays(op, dir) {
  const key = `${op}-${dir}`;
  if (cardCache.has(key)) return cardCache.get(key);
  const o = T.ops[op],
    found = [],
    taken = new Set(),
    seen = new Set(),
    ends = new Map(),
    owner = new Map(),
    owns = new Map(); // the user's names of the results
  for (const x of dir ? o.dout : o.out)
    if (x && x.v !== undefined) {
      // Two inputs may get the same gradient, so a result can have several names; and a step with another value may
      // have a name of one of the results.
      ends.set(x.v, [...(ends.get(x.v) || []), x.n]);
      owner.set(x.n, x.v);
      if (x.u) owns.set(x.v, [...(owns.get(x.v) || []), x.u]);
    }
  const add = (label, v, role, k, other, own = owns.get(v)) => {
    while (taken.has(label) || (owner.has(label) && owner.get(label) !== v)) label += "′";
    taken.add(label);
    seen.add(v);
    found.push({ label, v, role, k, own, also: [...(ends.get(v) || []), ...(other ? [other] : [])] });
  };
  for (const x of dir ? o.din : o.in) if (x && x.v !== undefined) add(x.n, x.v, "in", undefined, undefined, x.u && [x.u]);
  if (dir) {
    const used = new Map(o.steps[1].flatMap((s) => s.o.map((x) => [x.v, x.n]))); // with the rule's own names
    for (const x of [...o.in, ...o.out])
      if (x && x.v !== undefined && used.has(x.v) && !seen.has(x.v))
        add(used.get(x.v) || x.n, x.v, "saved", undefined, x.n, x.u && [x.u]);
  }
  o.steps[dir].forEach((s, k) =>
    add(
      s.n || (ends.has(s.v) ? ends.get(s.v).join(", ") : s.i),
      s.v,
      s.n || ends.has(s.v) ? "step" : "part",
      k,
    ),
  );
  for (const [v, names] of ends)
    if (!found.some((f) => f.v === v && f.role !== "saved")) add(names.join(", "), v, "out");
  cardCache.set(key, found);
  return found;
}

const arrayByLabel = (op, dir, label) =>
  cardArrays(op, dir).find((a) => a.label === label) || cardArrays(op, dir).find((a) => a.also.includes(label));
const labelOf = (op, dir, v) => (cardArrays(op, dir).find((a) => a.v === v) || {}).label;

// The card to open for a value: the one that computed it, or else the first one that uses it.
function homeOf(v) {
  v = sourceOf(v);
  const [kind, op, dir] = originOf(v);
  if (kind === "step" || kind === "kernel") return { op, dir, a: labelOf(op, dir, v) };
  for (let i = 0; i < T.ops.length; i++) {
    const at = (refs) => refs.some((x) => x && x.v !== undefined && sourceOf(x.v) === v);
    if (at(T.ops[i].din))
      return { op: i, dir: 1, a: labelOf(i, 1, T.ops[i].din.find((x) => x && sourceOf(x.v) === v).v) };
    if (at(T.ops[i].in))
      return {
        op: i,
        dir: 0,
        a: labelOf(i, 0, T.ops[i].in.find((x) => x && x.v !== undefined && sourceOf(x.v) === v).v),
      };
  }
  return null;
}

const firstBadWords = (bad) =>
  bad.given ? `the first NaN or infinity is an input here: ${bad.given}` : "the first NaN or infinity arises here";

// The name of an array on the card, and what the user's program calls it.
const withOwn = (shown, a) => [shown, ...(a.own || []).filter((name) => name !== shown)].join(" = ");

// The user's statement that ran an operation, with the variables that hold its results, as far as they are known.
function ownStatement(o) {
  const names = o.out.map((x) => x && x.u).filter(Boolean);
  return names.length === o.out.length ? `${names.join(", ")} = ${o.code}` : o.code;
}

function placeWords(o) {
  if (o.module) return o.module;
  if (o.module === "") return "the model itself";
  return T.groups.some((group) => group.module !== null) ? "outside the model" : "your code";
}

const titleOf = (o) => o.op.replaceAll("_", " ");

function buildCard() {
  const o = T.ops[S.op],
    kind = T.kinds[o.op],
    dir = S.dir,
    list = cardArrays(S.op, dir);
  const card = $("card");
  const pick = (a) =>
    thumbnail(a.v, withOwn(a.shown || a.label, a), S.a === a.label, () => go({ a: a.label, index: null, pane: "array" }, true));
  const chips = el(
    "p",
    { class: "chips" },
    el("span", { class: "chip" }, o.by),
    el("span", { class: "chip" }, `${(o.ms[dir] ?? 0).toFixed(3)} ms`),
    o.line ? el("span", { class: "chip" }, o.line) : null,
    o.code ? el("code", { class: "chip code" }, ownStatement(o)) : null,
    dir && o.check ? el("span", { class: `chip secret ${o.check.verdict}` }, `check: ${o.check.verdict}`) : null,
    T.firstBad && T.firstBad.op === S.op && T.firstBad.dir === dir
      ? el("span", { class: "chip wrong" }, firstBadWords(T.firstBad))
      : null,
  );
  const formula = dir ? kind.b : kind.f;
  const parts = [
    el("p", { class: "place" }, placeWords(o)),
    el(
      "h2",
      { tabindex: "-1", id: "card-title" },
      titleOf(o),
      el("span", { class: dir ? "dir back" : "dir" }, dir ? "backward" : "forward"),
    ),
    chips,
    formula ? typeset(formula, dir ? kind.u : kind.t) : null,
    kind.doc ? el("p", { class: "doc", html: kind.doc }) : null,
    dir ? el("p", { class: "doc" }, sentence(o)) : null,
    section(
      "in",
      dir ? "Incoming gradients and saved arrays" : "Inputs",
      el(
        "div",
        { class: "arrays" },
        list.filter((a) => a.role === "in" || a.role === "saved").map(pick),
        numbersIn(o, dir),
      ),
    ),
    steps(o, dir, list, pick),
    section(
      "out",
      dir ? "Gradients of the inputs" : "Outputs",
      el("div", { class: "arrays" }, ends(o, dir).map(pick), accumulation(o, dir)),
    ),
    dir ? checkTable(o) : savedTable(o),
    S.quiz ? quizFor(S.op, dir) : null,
  ];
  card.replaceChildren(...parts.filter(Boolean));
}

// A long formula scrolls, so the keyboard must reach it.
const typeset = (formula, source) =>
  el("div", { class: "formula", role: "group", tabindex: "0", html: formula, "aria-label": source });

const section = (name, title, ...content) => el("section", { class: name }, el("h3", {}, title), ...content);
// The results, each array once, with all its names.
function ends(o, dir) {
  const found = [...new Set(outputs(o, dir).map((x) => x.v))].map((v) => cardArrays(S.op, dir).find((a) => a.v === v));
  return found.map((a) => ({
    ...a,
    shown:
      a.also.includes(a.label) && a.also.length === 1
        ? a.label
        : a.also
            .filter((n) => n !== a.label)
            .concat(a.also.join(", ") === a.label ? [] : [a.label])
            .join(" = ") || a.label,
  }));
}

const outputs = (o, dir) => (dir ? o.dout : o.out).filter((x) => x && x.v !== undefined);

function numbersIn(o, dir) {
  if (dir) return null;
  const words = [
    ...o.in.filter((x) => x && x.v === undefined).map((x) => `${x.n} = ${x.c}`),
    ...Object.entries(o.params).map(([k, v]) => `${k} = ${v}`),
  ];
  return words.length ? el("p", { class: "params" }, words.join(", ")) : null;
}

function sentence(o) {
  const wanted = o.dout.map((x, i) => (x ? x.n : null)).filter(Boolean);
  const given = o.din.filter(Boolean).map((x) => x.n);
  return `Given ${given.join(" and ")} (the slope of the loss with respect to each element of the output), the rule returns ${wanted.join(", ")}, ${wanted.length > 1 ? "each with" : "with"} the shape of its input. It never builds the Jacobian, outputs by inputs.`;
}

// If several operations used an output, its gradient is a sum.
function accumulation(o, dir) {
  const sums = dir ? o.din.filter((x) => x && originOf(x.v)[0] === "sum") : [];
  if (!sums.length) return null;
  return el(
    "p",
    { class: "doc" },
    `The output was used more than once: before this rule ran, ${sums.map((x) => `${x.n} was computed as the sum of ${originOf(x.v)[1].length} gradients`).join("; ")}. Open it to see its terms.`,
  );
}

function steps(o, dir, list, pick) {
  if (!o.lines[dir].length) {
    const identity = outputs(o, dir).length ? "The gradient passes through unchanged; no step is needed." : "";
    return section(
      "steps",
      "The rule, as it ran",
      el(
        "p",
        { class: "doc" },
        o.unexplained[dir] ? `No steps are shown: ${o.unexplained[dir]}.` : identity,
      ),
    );
  }
  const items = o.lines[dir].map((line, n) => {
    const own = list.filter((a) => a.k !== undefined && o.steps[dir][a.k].t === n);
    const named = own.filter((a) => a.role === "step"),
      parts = own.filter((a) => a.role === "part");
    const lit = own.some((a) => a.label === S.a);
    return el(
      "li",
      { class: lit ? "lit" : "", id: `line-${n}` },
      el(
        "div",
        { class: "line" },
        el(
          "div",
          { class: "says" },
          line.c ? el("p", { class: "comment" }, line.c) : null,
          typeset(line.m, line.s),
          el("code", { class: "source", title: line.p }, line.s),
        ),
        el("div", { class: "arrays" }, named.map(pick)),
      ),
      parts.length ? within(own, o.steps[dir], pick) : null,
    );
  });
  const earlier = list.find((a) => a.k !== undefined && a.label.endsWith("′"));
  const says = [...o.says[dir], ...(earlier ? [`${earlier.label} has a mark because the rule uses this name more than once.`] : [])];
  const words = says.map((line) => el("p", { class: "doc" }, line));
  return section("steps", dir ? "The rule, as it ran" : "The formula, as it ran", el("ol", {}, items), words);
}

// The single steps of a line as equations, the named ones too; they are drawn only when the reader opens them.
function within(own, steps, pick) {
  const parts = own.filter((a) => a.role === "part");
  const build = () =>
    el(
      "div",
      { class: "arrays" },
      own.map((a) => el("div", { class: "part" }, el("code", {}, `${steps[a.k].i} = ${steps[a.k].w}`), a.role === "part" ? pick(a) : null)),
    );
  const chosen = parts.some((a) => a.label === S.a);
  const box = el(
    "details",
    { open: chosen },
    el("summary", {}, `${own.length} single step${own.length > 1 ? "s" : ""} of this line`),
    chosen ? build() : null,
  );
  box.addEventListener("toggle", () => {
    if (box.open && box.children.length === 1) box.append(build());
  });
  return box;
}

function savedTable(o) {
  const needed = o.saved.filter(([, n]) => n > 0),
    total = needed.reduce((s, [, n]) => s + n, 0);
  const words = needed.length ? needed.map(([name, n]) => `${name} (${bytesText(n)})`).join(", ") : "nothing";
  return section(
    "saved",
    "Saved for backward",
    el(
      "p",
      {},
      `${words}${total ? `: ${bytesText(total)}` : ""}. The tape holds ${bytesText(o.held[0])} after this operation${o.held[1] === null ? "" : ` and ${bytesText(o.held[1])} after its gradient rule`}.`,
    ),
  );
}

const VERDICTS = { agrees: "✓ agrees", wrong: "✗ wrong", unclear: "· unclear" };

function checkTable(o) {
  const c = o.check;
  if (!c)
    return section(
      "check",
      "Numeric check",
      el("p", { class: "doc" }, "This rule was not checked, because the trace did not store its arrays."),
    );
  return section(
    "check",
    "Numeric check",
    isExercise() ? exercise() : null,
    el("p", { class: `summary ${c.verdict}` }, c.why || checkWords(c)),
    table(
      {},
      ["gradient", "as run", "rule, float64", "finite difference", "relative error", ""],
      c.rows.map((r) => checkRow(o, ...r)),
    ),
    curve(c.curve),
  );
}

// In an exercise: the question, and the planted mistake once the reader has found it, or has given up.
function exercise() {
  const claims = S.claims === 1 ? "1 claim" : `${S.claims} claims`;
  if (isHomework())
    return el(
      "p",
      { class: "exercise" },
      "Compare rule and finite difference, and decide. If this rule is wrong, the answer is ",
      el("code", {}, `tinyvit study --answer ${T.about.homework} ${T.ops[S.op].key}`),
    );
  if (S.revealed)
    return el("p", { class: "exercise" }, `${S.found ? `Found with ${claims}. ` : ""}The mistake: ${T.about.exercise}.`);
  return el(
    "p",
    { class: "exercise" },
    S.claims && S.claimed === S.op ? `No, this rule is right (${claims} so far). ` : "Compare rule and finite difference, and decide. ",
    el("button", { class: "tool", onclick: claim }, "this rule is wrong"),
    S.claims ? el("button", { class: "tool", onclick: reveal }, "give up: show the verdicts") : null,
  );
}

// The reader says that the rule on this card is the wrong one.
function claim() {
  S.claims += 1;
  S.claimed = S.op;
  S.found = T.ops[S.op].check.verdict === "wrong";
  if (S.found) reveal();
  else draw(true);
}

const checkWords = (c) =>
  c.verdict === "agrees"
    ? `Finite differences at float64 agree; what ran ${c.run ? `is within ${short(c.run, 2)} of` : "equals"} the rule at float64.`
    : "The check proves nothing here: the gradient is smaller than the rounding error, or has a kink.";

function checkRow(o, input, index, run, rule, numeric, tolerance, verdict) {
  const open = () => {
    const a = labelForCheck(o, input);
    if (a) go({ a, index }, true);
  };
  const name =
    index === null
      ? `d${input}, a random direction`
      : el("button", { class: "link", onclick: open }, `d${input}[${index.join(", ")}]`);
  const scale = Math.max(Math.abs(rule), Math.abs(numeric)) || 1,
    error = typeof rule === "number" ? short(Math.abs(rule - numeric) / scale, 2) : "";
  return el(
    "tr",
    { class: verdict },
    el("th", { scope: "row" }, name),
    el("td", {}, short(run, 6)),
    el("td", {}, short(rule, 7)),
    el("td", {}, short(numeric, 7)),
    el("td", {}, error),
    el("td", { class: "verdict" }, VERDICTS[verdict]),
  );
}

function labelForCheck(o, input) {
  const ref = o.dout.find((x) => x && x.n === `d${input}`);
  return ref ? labelOf(S.op, 1, ref.v) : null;
}

// The error of the difference, plotted over its step: curvature dominates on the right, rounding on the left.
function curve(points) {
  const shown = points.filter(([, e]) => typeof e === "number" && e > 0);
  if (shown.length < 3) return null;
  const x = (h) => 20 + 20 * (11 + Math.log10(h)),
    y = (e) => 14 + 6.2 * (2 - Math.max(-13, Math.min(2, Math.log10(e))));
  const path = shown.map(([h, e], i) => `${i ? "L" : "M"}${x(h).toFixed(1)} ${y(e).toFixed(1)}`).join(" ");
  const best = shown.reduce((a, b) => (b[1] < a[1] ? b : a));
  return el(
    "figure",
    {},
    svg(
      "svg",
      {
        viewBox: "0 0 240 122",
        role: "img",
        "aria-label": `error plotted over step; the smallest is ${short(best[1], 2)}, at step ${best[0]}`,
      },
      svg("line", { class: "axis", x1: 16, y1: 108, x2: 236, y2: 108 }),
      svg("path", { class: "curve", d: path }),
      ...shown.map(([h, e]) => svg("circle", { class: "dot", cx: x(h), cy: y(e), r: 2.4 })),
      label(20, 119, "h = 1e−11"),
      label(196, 119, "1e−1"),
      label(x(best[0]) - 14, Math.min(y(best[1]) + 12, 106), short(best[1], 2)),
    ),
    el("figcaption", {}, "The error of the difference, plotted over its step h: rounding dominates on the left, curvature on the right."),
  );
}

function label(x, y, text) {
  const node = svg("text", { x, y });
  node.textContent = text;
  return node;
}
