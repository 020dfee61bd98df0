// The health of the whole pass: verdicts, NaN, the gradient norm of every parameter, memory held by the tape.

function healthView() {
  const rows = T.layers.map((r) => ({ ...r, gradient: Number(r.gradient), weight: Number(r.weight) })),
    most = Math.max(1e-30, ...rows.map((r) => r.gradient).filter(Number.isFinite));
  const length = (r) =>
    !Number.isFinite(r.gradient) ? 1 : r.gradient > 0 ? Math.max(0.01, 1 + Math.log10(r.gradient / most) / 6) : 0;
  return [
    el("h2", {}, "The whole pass at a glance"),
    checkedWords(),
    finiteWords(),
    el("h3", {}, "Gradient norm of every parameter"),
    el(
      "p",
      { class: "doc" },
      "The scale is logarithmic. Bars that shrink from the head to the first block mean vanishing gradients; bars that grow mean exploding ones. The last column is the gradient's norm divided by the weight's.",
    ),
    table(
      { class: "bars" },
      ["parameter", "gradient norm", "", "gradient / weight"],
      rows.map((r) =>
        row(
          r.name,
          bar(length(r), !Number.isFinite(r.gradient)),
          short(r.gradient, 3),
          r.weight ? short(r.gradient / r.weight, 2) : "–",
        ),
      ),
    ),
    el("h3", {}, "Memory held by the tape"),
    memoryCurve(),
  ];
}

// A sentence, then a link to the card of each of `places`, {op, dir}.
function summary(kind, text, places = []) {
  const link = ({ op, dir }) =>
    el(
      "button",
      { class: "link", onclick: () => go({ view: "walk", op, dir, a: null, index: null }, true) },
      `${T.ops[op].key}, ${dir ? "backward" : "forward"}`,
    );
  return el("p", { class: `summary ${kind}` }, text, places.flatMap((place) => [link(place), " "]));
}

// The result of the checks. A rule that was not compared with differences does not count as agreeing.
function checkedWords() {
  const rules = [...T.ops.keys()].filter((op) => T.ops[op].ms[1] !== null);
  if (!rules.length) return summary("unclear", "No gradient rule ran, so none was checked.");
  const of = (verdict) => rules.filter((op) => T.ops[op].check?.verdict === verdict),
    places = (ops) => ops.map((op) => ({ op, dir: 1 }));
  const agree = of("agrees").length,
    wrong = of("wrong"),
    unclear = of("unclear"),
    unchecked = rules.filter((op) => !T.ops[op].check).length;
  const numbers = rules.reduce((s, op) => s + (T.ops[op].check?.rows.length || 0), 0);
  const rest = [
    unclear.length ? `${unclear.length} could not be judged` : "",
    unchecked ? `${unchecked} could not be checked, because the trace did not store their arrays` : "",
  ].filter(Boolean);
  if (wrong.length)
    return summary("wrong", `${wrong.length} of ${rules.length} gradient rules are wrong: `, places(wrong));
  const agreement = `${agree} of ${rules.length} gradient rules agree with finite differences, ${numbers} numbers checked`;
  return summary(
    agree === rules.length ? "agrees" : "unclear",
    [agree ? agreement : "No gradient rule could be verified", ...rest].join("; ") + (unclear.length ? ", among them " : "."),
    places(unclear.slice(0, 6)),
  );
}

function finiteWords() {
  const bad = T.firstBad;
  if (!bad) return summary("agrees", "Everything that was computed is finite.");
  return bad.given === null
    ? summary("wrong", "The first NaN or infinity arises in ", [bad])
    : summary("wrong", `The first NaN or infinity came from outside, as the input ${bad.given} of `, [bad]);
}

function memoryCurve() {
  const held = moments.map((m) => T.ops[m.op].held[m.dir]),
    most = Math.max(1, ...held),
    peak = held.indexOf(Math.max(...held));
  const x = (i) => 8 + (i * 584) / Math.max(1, held.length - 1),
    y = (n) => 134 - (118 * n) / most;
  const d = held.map((n, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(n).toFixed(1)}`).join(" ");
  const half = held.length ? x(T.ops.length - 0.5) : 0;
  return el(
    "figure",
    {},
    svg(
      "svg",
      { viewBox: "0 0 600 150", role: "img", "aria-label": `peak ${bytesText(held[peak])}` },
      svg("path", { class: "area", d: `${d} L592 134 L8 134 z` }),
      svg("path", { class: "curve", d }),
      svg("line", { class: "axis", x1: half, x2: half, y1: 8, y2: 134 }),
      label(half - 60, 146, "forward"),
      label(half + 10, 146, "backward"),
      label(Math.min(x(peak) + 6, 480), y(most) + 10, `peak ${bytesText(held[peak])}`),
    ),
    el(
      "figcaption",
      {},
      "The bytes that the tape holds for backward after each operation and each gradient rule, without parameters.",
    ),
  );
}
