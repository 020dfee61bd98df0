// The start view: the image, the model's probabilities, and places to go to.

function startView() {
  const intro = isSecret()
    ? "Everything on this page ran, but one gradient rule is wrong, in one place. Walk back from the loss, compare each rule with finite differences, and find the mistake."
    : `${T.about.answer ? `A model looks at one image, ${T.about.answer}, and computes, operation by operation, how each of its parameters should change.` : "A program computed a result, and then, operation by operation, how that result changes with each array that it was made from."} This page shows every step of that backward pass: the formula, the arrays, the rule as it ran, and a check.`;
  const first = T.tour[0];
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
            { class: "tool begin", onclick: () => go({ view: "walk", op: first.op, dir: first.dir, a: first.a, index: first.index }, true) },
            "Start at the loss →",
          ),
        ),
        el(
          "p",
          {},
          `The places below lead from the loss back to ${T.about.pixels === undefined ? "the parameters" : "the image"}, which is how gradients are computed.`,
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
    el("caption", {}, "what the model says; ← is the class that the loss takes as right"),
    el(
      "tbody",
      {},
      order.map((i) =>
        row(T.about.classes[i] + (i === T.about.target ? " ←" : ""), bar(p[i]), (100 * p[i]).toFixed(1) + " %"),
      ),
    ),
  );
}
