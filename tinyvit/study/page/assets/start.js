// The start view: the image, the model's probabilities, and places to go to.

function startView() {
  const intro = isSecret()
    ? "Everything on this page ran, but one gradient rule is wrong, in one place. Walk back from the loss, compare each rule with finite differences, and find the mistake."
    : `A model looks at one image, ${T.about.answer}, and computes, operation by operation, how each of its parameters should change. This page shows every step of that backward pass: the formula, the arrays, the rule as it ran, and a check.`;
  const places = T.tour.map((t, i) =>
    el(
      "li",
      {},
      el(
        "button",
        { class: "tour", onclick: () => go({ view: "walk", op: t.op, dir: t.dir, a: t.a, index: t.index }, true) },
        el("small", {}, `${i + 1} · ${T.ops[t.op].key}`),
        el("b", {}, t.title),
        el("span", {}, t.text),
      ),
    ),
  );
  const image =
    T.about.pixels === undefined ? null : el("canvas", { class: "hero", role: "img", "aria-label": "the image" });
  if (image) drawImage(image, Math.max(1, Math.round(192 / contentOf(T.about.pixels).shape[1])));
  return [
    el(
      "div",
      { class: "row" },
      image,
      T.about.probabilities ? probabilities() : null,
      el(
        "div",
        { class: "intro" },
        el("p", {}, intro),
        el(
          "p",
          {},
          el(
            "button",
            { class: "tool begin", onclick: () => go({ view: "walk", op: 0, dir: 0, a: null, index: null }, true) },
            "Walk from the first operation →",
          ),
        ),
        el("p", { class: "doc" }, "The arrow keys step through the operations, and ? lists all keys. Choose a cell of any array to see how its number was computed."),
      ),
    ),
    el("ol", { class: "places" }, places),
  ];
}

function probabilities() {
  const p = T.about.probabilities,
    order = [...p.keys()]
      .sort((a, b) => p[b] - p[a])
      .slice(0, 10)
      .sort((a, b) => a - b);
  return el(
    "table",
    { class: "says" },
    el("caption", {}, "what the model says"),
    el(
      "tbody",
      {},
      order.map((i) =>
        row(T.about.classes[i] + (i === T.about.target ? " ←" : ""), bar(p[i]), (100 * p[i]).toFixed(1) + " %"),
      ),
    ),
  );
}
