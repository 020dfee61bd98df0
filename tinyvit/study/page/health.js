// The whole way at a glance: verdicts, NaN, the gradient norm of every parameter, memory held by the tape.

function healthView() {
  const rows = T.layers,
    most = Math.max(1e-30, ...rows.map((r) => r.gradient)),
    wrong = T.ops.map((o, i) => [o, i]).filter(([o]) => o.check && o.check.verdict === "wrong");
  const checked = T.ops.filter((o) => o.check),
    numbers = checked.reduce((s, o) => s + o.check.rows.length, 0);
  const length = (r) => (r.gradient > 0 ? Math.max(0.01, 1 + Math.log10(r.gradient / most) / 6) : 0);
  const bad = T.firstBad;
  return [
    el("h2", {}, "The whole way at a glance"),
    el(
      "p",
      { class: wrong.length ? "summary wrong" : "summary agrees" },
      wrong.length
        ? `${wrong.length} of ${checked.length} gradient rules are wrong: `
        : `${checked.length} gradient rules, ${numbers} numbers checked, none wrong.`,
      wrong.flatMap(([o, i]) => [
        el(
          "button",
          { class: "link", onclick: () => go({ view: "walk", op: i, dir: 1, a: null, index: null }, true) },
          o.key,
        ),
        " ",
      ]),
    ),
    el(
      "p",
      { class: bad ? "summary wrong" : "summary agrees" },
      bad ? "The first NaN or infinity arises in " : "No NaN and no infinity anywhere.",
      bad
        ? el(
            "button",
            {
              class: "link",
              onclick: () => go({ view: "walk", op: bad.op, dir: bad.dir, a: null, index: null }, true),
            },
            `${T.ops[bad.op].key}, ${bad.dir ? "backward" : "forward"}`,
          )
        : null,
    ),
    el("h3", {}, "Gradient norm of every parameter"),
    el(
      "p",
      { class: "doc" },
      "On a logarithmic scale. Bars that shrink from the head to the first block would be vanishing gradients; growing ones exploding. Beside it, the gradient's norm over the weight's.",
    ),
    table(
      { class: "bars" },
      ["parameter", "gradient norm", "", "gradient / weight"],
      rows.map((r) =>
        row(r.name, bar(length(r)), short(r.gradient, 3), r.weight ? short(r.gradient / r.weight, 2) : "–"),
      ),
    ),
    el("h3", {}, "Memory held by the tape"),
    memoryCurve(),
  ];
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
      { viewBox: "0 0 600 150", role: "img", "aria-label": `peak ${bytesText(most)}` },
      svg("path", { class: "area", d: `${d} L592 134 L8 134 z` }),
      svg("path", { class: "curve", d }),
      svg("line", { class: "axis", x1: half, x2: half, y1: 8, y2: 134 }),
      label(half - 60, 146, "forward"),
      label(half + 10, 146, "backward"),
      label(Math.min(x(peak) + 6, 480), y(most) + 10, `peak ${bytesText(most)}`),
    ),
    el(
      "figcaption",
      {},
      "Bytes that wait for the way back, parameters left out, after each operation and each gradient rule.",
    ),
  );
}
