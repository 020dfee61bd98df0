// The other views: attention on the image, the health of all layers, fused kernels beside the formula, questions, about.

function buildView() {
  const box = $("view");
  const make = { start: startView, attention: attentionView, health: healthView, fused: fusedView, quiz: quizView, about: aboutView }[S.view];
  box.replaceChildren(...(make ? make() : []));
}

// Start --------------------------------------------------------------------------------------------------------------

function startView() {
  const wrong = T.about.exercise && !S.revealed;
  const intro = wrong
    ? "Everything here ran, and one gradient rule is wrong. Walk back from the loss, compare the rule with finite differences, and find it."
    : "A model looks at one image, is told the right answer, and works out, operation by operation, how every one of its numbers should change. Each step of that way back is here: the formula, the arrays, the rule as it ran, and a check.";
  const places = T.tour.map((t, i) => el("li", {}, el("button", { class: "tour", onclick: () => go({ view: "walk", op: t.op, dir: t.dir, a: t.a, index: t.index }, true) }, el("small", {}, `${i + 1} · ${T.ops[t.op].key}`), el("b", {}, t.title), el("span", {}, t.text))));
  const image = T.about.pixels === undefined ? null : el("canvas", { class: "hero", role: "img", "aria-label": "the image" });
  if (image) drawImage(image, Math.max(1, Math.round(192 / contentOf(T.about.pixels).shape[1])));
  return [el("div", { class: "row" }, image, T.about.probabilities ? probabilities() : null, el("div", { class: "intro" }, el("p", {}, intro), el("p", {}, el("button", { class: "tool begin", onclick: () => go({ view: "walk", op: 0, dir: 0, a: null, index: null }, true) }, "Walk from the first operation →")), el("p", { class: "doc" }, "Arrow keys step; ? lists all keys. Any cell of any array answers the question why."))), el("ol", { class: "places" }, places)];
}

function probabilities() {
  const p = T.about.probabilities, order = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 10).sort((a, b) => a - b);
  return el("table", { class: "says" }, el("caption", {}, "what the model says"), el("tbody", {}, order.map((i) => el("tr", {}, el("th", { scope: "row" }, T.about.classes[i], i === T.about.target ? " ←" : ""), el("td", { class: "wide" }, el("i", { class: "bar", style: `width:${(100 * p[i]).toFixed(1)}%` })), el("td", {}, (100 * p[i]).toFixed(1) + " %")))));
}

// Attention ----------------------------------------------------------------------------------------------------------

const look = { which: "p", query: null };

function attentionView() {
  if (!T.attention.length || !T.about.grid) return [el("p", { class: "doc" }, "Nothing here attends to patches of an image.")];
  const kinds = [["p", "A", "attention weights: how much each token takes from each other one"], ["dp", "dA", "how the loss would change with each weight"], ["ds", "dS", "the gradient of the scores, before softmax"]];
  const choose = el("div", { class: "tools", role: "group", "aria-label": "which array" }, kinds.map(([k, name]) => el("button", { class: "tool", "aria-pressed": look.which === k ? "true" : "false", onclick: () => { look.which = k; buildView(); } }, name)));
  const grid = T.about.grid, prefix = T.about.prefix || 0, n = grid[0] * grid[1] + prefix;
  look.query = Math.min(look.query ?? Math.floor(n / 2), n - 1);
  const token = el("label", { class: "slider" }, el("span", {}, `query: ${axisWord("N", look.query, n)}`), el("input", { type: "range", min: 0, max: n - 1, value: look.query, "aria-label": "query token", oninput: (e) => { look.query = Number(e.target.value); buildView(); $("view").querySelector("input[type=range]").focus(); } }));
  const rows = T.attention.map((layer) => {
    const v = layer[look.which], array = contentOf(v), heads = array.shape[1], S_ = array.shape[3];
    const limit = look.which === "p" ? 1 : Math.max(Math.abs(array.min), Math.abs(array.max)) || 1;
    return el("div", { class: "layer" }, el("h4", {}, layer.title), el("div", { class: "heads" }, Array.from({ length: heads }, (_, h) => {
      const start = (h * array.shape[2] + look.query) * S_, row = array.data.subarray(start, start + S_);
      const total = row.reduce((s, x) => s + x, 0);
      const own = prefix ? ` · class token ${short(row[0], 2)}` : "";
      return el("figure", {}, overlay(row.subarray(prefix), grid, limit), el("figcaption", {}, el("button", { class: "link", onclick: () => go({ view: "walk", op: layer.op, dir: 1, a: look.which, index: [0, h, look.query, 0] }, true) }, `head ${h}`), ` Σ ${short(total, 3)}${own}`));
    })));
  });
  const caveat = "Attention says where a head looked, not why the model decided; the gradients beside it say what would have changed the loss.";
  return [el("h2", {}, "Attention, laid over the image"), el("p", { class: "doc" }, kinds.find((k) => k[0] === look.which)[2] + `. ${look.which === "p" ? "Scale 0 to 1." : "Scale of each layer by itself."} ${caveat}`), el("div", { class: "row" }, imageButton(prefix), el("div", {}, choose, token)), ...rows];
}

// The image as a picture, its pixels squares; a click chooses the patch that looks.
function drawImage(canvas, scale) {
  const image = contentOf(T.about.pixels), [channels, height, width] = image.shape;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const at = (c) => image.data[(c * height + y) * width + x];
    context.fillStyle = channels === 3 ? `rgb(${at(0)},${at(1)},${at(2)})` : `rgb(${at(0)},${at(0)},${at(0)})`;
    context.fillRect(x * scale, y * scale, scale, scale);
  }
  return context;
}

function overlay(row, grid, limit) {
  const canvas = el("canvas", { class: "overlay", "aria-hidden": "true" }), size = contentOf(T.about.pixels).shape[1];
  const scale = Math.max(1, Math.round(96 / size)), context = drawImage(canvas, scale), h = canvas.height / grid[0], w = canvas.width / grid[1];
  for (let i = 0; i < grid[0]; i++) for (let j = 0; j < grid[1]; j++) {
    const x = row[i * grid[1] + j], t = Math.min(1, Math.abs(x) / limit);
    context.fillStyle = x < 0 ? `rgba(70,130,255,${0.85 * Math.sqrt(t)})` : `rgba(255,90,60,${0.85 * Math.sqrt(t)})`;
    context.fillRect(j * w, i * h, w, h);
  }
  return canvas;
}

function imageButton(prefix) {
  const canvas = el("canvas", { class: "image" }), grid = T.about.grid, size = contentOf(T.about.pixels).shape[1];
  const context = drawImage(canvas, Math.max(1, Math.round(128 / size)));
  const p = look.query - prefix, w = canvas.width / grid[1], h = canvas.height / grid[0];
  if (p >= 0) { context.strokeStyle = "#ffb000"; context.lineWidth = 3; context.strokeRect((p % grid[1]) * w + 1.5, Math.floor(p / grid[1]) * h + 1.5, w - 3, h - 3); }
  return el("button", { class: "imagebutton", "aria-label": "choose the patch that looks: click on the image, or use the slider", onclick: (e) => {
    const r = canvas.getBoundingClientRect();
    if (!e.clientX) return;
    look.query = prefix + Math.min(grid[0] - 1, Math.floor(((e.clientY - r.top) / r.height) * grid[0])) * grid[1] + Math.min(grid[1] - 1, Math.floor(((e.clientX - r.left) / r.width) * grid[1]));
    buildView();
  } }, canvas);
}

// Health -------------------------------------------------------------------------------------------------------------

function healthView() {
  const rows = T.layers, most = Math.max(1e-30, ...rows.map((r) => r.gradient)), wrong = T.ops.map((o, i) => [o, i]).filter(([o]) => o.check && o.check.verdict === "wrong");
  const checked = T.ops.filter((o) => o.check), numbers = checked.reduce((s, o) => s + o.check.rows.length, 0);
  const bad = T.firstBad;
  return [
    el("h2", {}, "The whole way at a glance"),
    el("p", { class: wrong.length ? "summary wrong" : "summary agrees" }, wrong.length ? `${wrong.length} of ${checked.length} gradient rules are wrong: ` : `${checked.length} gradient rules, ${numbers} numbers checked, none wrong.`, wrong.flatMap(([o, i]) => [el("button", { class: "link", onclick: () => go({ view: "walk", op: i, dir: 1, a: null, index: null }, true) }, o.key), " "])),
    el("p", { class: bad ? "summary wrong" : "summary agrees" }, bad ? "The first NaN or infinity arises in " : "No NaN and no infinity anywhere.", bad ? el("button", { class: "link", onclick: () => go({ view: "walk", op: bad.op, dir: bad.dir, a: null, index: null }, true) }, `${T.ops[bad.op].key}, ${bad.dir ? "backward" : "forward"}`) : null),
    el("h3", {}, "Gradient norm of every parameter"),
    el("p", { class: "doc" }, "On a logarithmic scale. Bars that shrink from the head to the first block would be vanishing gradients; growing ones exploding. Beside it, the gradient's norm over the weight's."),
    el("div", { class: "scroll" }, el("table", { class: "bars" }, el("thead", {}, el("tr", {}, ["parameter", "gradient norm", "", "gradient / weight"].map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, rows.map((r) => el("tr", {}, el("th", { scope: "row" }, r.name), el("td", { class: "wide" }, el("i", { class: "bar", style: `width:${r.gradient > 0 ? Math.max(1, 100 * (1 + Math.log10(r.gradient / most) / 6)) : 0}%` })), el("td", {}, short(r.gradient, 3)), el("td", {}, r.weight ? short(r.gradient / r.weight, 2) : "–")))))),
    el("h3", {}, "Memory held by the tape"),
    memoryCurve(),
  ];
}

function memoryCurve() {
  const held = moments.map((m) => T.ops[m.op].held[m.dir]), most = Math.max(1, ...held), peak = held.indexOf(Math.max(...held));
  const x = (i) => 8 + (i * 584) / Math.max(1, held.length - 1), y = (n) => 134 - (118 * n) / most;
  const d = held.map((n, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(n).toFixed(1)}`).join(" ");
  const half = held.length ? x(T.ops.length - 0.5) : 0;
  return el("figure", {}, svg("svg", { viewBox: "0 0 600 150", role: "img", "aria-label": `peak ${bytesText(most)}` }, svg("path", { class: "area", d: `${d} L592 134 L8 134 z` }), svg("path", { class: "curve", d }), svg("line", { class: "axis", x1: half, x2: half, y1: 8, y2: 134 }), label(half - 60, 146, "forward"), label(half + 10, 146, "backward"), label(Math.min(x(peak) + 6, 480), y(most) + 10, `peak ${bytesText(most)}`)), el("figcaption", {}, "Bytes that wait for the way back, parameters left out, after each operation and each gradient rule."));
}

// Fused against plain ------------------------------------------------------------------------------------------------

function fusedView() {
  if (!T.fused.length) return [el("h2", {}, "Fused against plain"), el("p", { class: "doc" }, "No operation of this trace has a fused kernel here.")];
  return [el("h2", {}, "Fused against plain"), el("p", { class: "doc" }, "A fused kernel computes the same formula in another order, keeps less and computes some of it again on the way back. Left, what the kernel holds after each tile; right, the plain formula. Every number was computed by Python when this page was written: the left by the kernel itself, on the keys it had seen so far."),
    ...T.fused.map((f) => el("section", { class: "fused" }, el("h3", {}, f.title), el("p", { class: "doc" }, f.words), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, f.columns.map((c) => el("th", { scope: "col" }, c)))), el("tbody", {}, f.rows.map((r) => el("tr", {}, r.map((c, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, typeof c === "number" ? short(c, 7) : c))))))),
      el("table", { class: "compare" }, el("thead", {}, el("tr", {}, ["", "fused", "plain"].map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, f.compare.map((r) => el("tr", {}, el("th", { scope: "row" }, r[0]), el("td", {}, r[1]), el("td", {}, r[2])))))))];
}

// Questions ----------------------------------------------------------------------------------------------------------

function question(q) {
  const answer = el("p", { class: "answer", hidden: true }, q.why, " ", el("button", { class: "link", onclick: () => go({ view: "walk", op: q.op, dir: q.dir, a: q.a, index: q.index || null }, true) }, "look"));
  const options = el("div", { class: "tools" }, q.options.map((text, i) => el("button", { class: "tool", onclick: (e) => {
    options.querySelectorAll("button").forEach((b, k) => { b.disabled = true; if (k === q.answer) b.classList.add("right"); });
    if (i !== q.answer) e.target.classList.add("no");
    answer.hidden = false;
    announce(i === q.answer ? "Right." : `No: ${q.options[q.answer]}.`);
  } }, text)));
  return el("article", { class: "question" }, el("p", {}, q.text), options, answer);
}

function quizView() {
  return [el("h2", {}, "Predict, then look"), el("p", { class: "doc" }, "Questions made from the numbers of this page. Decide first; then the page shows the number."), ...T.quiz.map(question)];
}

const quizFor = (op, dir) => {
  const own = T.quiz.filter((q) => q.op === op && q.dir === dir);
  return own.length ? section("questions", "Predict", ...own.map(question)) : null;
};

// About --------------------------------------------------------------------------------------------------------------

function aboutView() {
  const keys = [["→ ←", "next, previous operation"], ["↓ ↑", "next, previous array of the card"], ["Home End", "first operation, last gradient rule"], ["b", "from an operation to its gradient rule and back"], ["l", "to the loss"], ["space", "play, pause"], ["/", "search"], ["Enter", "on an array: into it; on a cell: why"], ["Esc", "out of it"], ["t", "light or dark"], ["?", "this page"]];
  return [el("h2", {}, "What this is"), ...T.notes.map((n) => el("p", { class: "doc" }, n)), el("h3", {}, "How it was made"), el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, T.facts.map(([k, x]) => el("tr", {}, el("th", { scope: "row" }, k), el("td", {}, x)))))), el("h3", {}, "Keys"), el("table", {}, el("tbody", {}, keys.map(([k, x]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, k)), el("td", {}, x))))),
    el("label", { class: "switch" }, el("input", { type: "checkbox", checked: keysOn, onchange: (e) => (keysOn = e.target.checked) }), " single keys are on")];
}
