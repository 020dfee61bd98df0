// The attention of every head drawn over the image, and its gradient.

const look = { which: "p", query: null };

// Take what a link asks for, and leave the rest as it is.
function lookAt(which, query) {
  if (which && ["p", "dp", "ds"].includes(which)) look.which = which;
  if (query !== null && /^\d+$/.test(query)) look.query = Number(query);
}

const MAPS = [
  ["p", "A", "attention weights: how much each token takes from every other token"],
  ["dp", "dA", "the gradient of the weights: how the loss would change with each of them"],
  ["ds", "dS", "the gradient of the scores, before softmax"],
];

function attentionView() {
  if (!T.attention.length || !T.about.grid)
    return [el("p", { class: "doc" }, "No operation on this page attends to patches of an image.")];
  const grid = T.about.grid,
    prefix = T.about.prefix || 0,
    n = grid[0] * grid[1] + prefix;
  look.query = Math.min(look.query ?? Math.floor(n / 2), n - 1);
  const words = MAPS.find((k) => k[0] === look.which)[2],
    scale = look.which === "p" ? "The colours range from 0 to 1." : "Each layer has its own colour scale.";
  const caveat =
    "Attention shows where a head looked, not why the model decided. The gradients show what would have changed the loss.";
  return [
    el("h2", {}, "Attention over the image"),
    el("p", { class: "doc" }, `The pictures show ${words}. ${scale} ${caveat}`),
    el("div", { class: "row" }, imageButton(prefix), el("div", {}, mapButtons(), querySlider(n))),
    ...T.attention.map((layer) => layerMaps(layer, grid, prefix)),
  ];
}

function mapButtons() {
  const button = ([which, name]) =>
    el(
      "button",
      {
        class: "tool",
        "aria-pressed": look.which === which ? "true" : "false",
        onclick: () => {
          look.which = which;
          go({});
        },
      },
      name,
    );
  return el("div", { class: "tools", role: "group", "aria-label": "which array" }, MAPS.map(button));
}

function querySlider(n) {
  return el(
    "label",
    { class: "slider" },
    el("span", {}, `query: ${axisWord("N", look.query, n)}`),
    el("input", {
      type: "range",
      min: 0,
      max: n - 1,
      value: look.query,
      "aria-label": "query token",
      oninput: (e) => {
        look.query = Number(e.target.value);
        go({});
        $("view").querySelector("input[type=range]").focus();
      },
    }),
  );
}

// One layer: for each head, the row of the query token over the image, and the row's sum.
function layerMaps(layer, grid, prefix) {
  const array = contentOf(layer[look.which]),
    [, heads, queries, keys] = array.shape;
  const limit = look.which === "p" ? 1 : Math.max(Math.abs(array.min), Math.abs(array.max)) || 1;
  const head = (h) => {
    const start = (h * queries + look.query) * keys,
      row = array.data.subarray(start, start + keys);
    const total = row.reduce((s, x) => s + x, 0);
    const own = prefix ? ` · class token ${short(row[0], 2)}` : "";
    const open = () => go({ view: "walk", op: layer.op, dir: 1, a: look.which, index: [0, h, look.query, 0] }, true);
    return el(
      "figure",
      {},
      overlay(row.subarray(prefix), grid, limit),
      el(
        "figcaption",
        {},
        el("button", { class: "link", onclick: open }, `head ${h}`),
        ` Σ ${short(total, 3)}${own}`,
      ),
    );
  };
  return el(
    "div",
    { class: "layer" },
    el("h3", {}, layer.title),
    el("div", { class: "heads" }, Array.from({ length: heads }, (_, h) => head(h))),
  );
}

// Draw the image with each pixel as a square.
function drawImage(canvas, scale) {
  const image = contentOf(T.about.pixels),
    [channels, height, width] = image.shape;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const at = (c) => image.data[(c * height + y) * width + x];
      context.fillStyle = channels === 3 ? `rgb(${at(0)},${at(1)},${at(2)})` : `rgb(${at(0)},${at(0)},${at(0)})`;
      context.fillRect(x * scale, y * scale, scale, scale);
    }
  return context;
}

function overlay(row, grid, limit) {
  const canvas = el("canvas", { class: "overlay", "aria-hidden": "true" }),
    size = contentOf(T.about.pixels).shape[1];
  const scale = Math.max(1, Math.round(96 / size)),
    context = drawImage(canvas, scale),
    h = canvas.height / grid[0],
    w = canvas.width / grid[1];
  for (let i = 0; i < grid[0]; i++)
    for (let j = 0; j < grid[1]; j++) {
      const x = row[i * grid[1] + j],
        t = Math.min(1, Math.abs(x) / limit);
      context.fillStyle = x < 0 ? `rgba(70,130,255,${0.85 * Math.sqrt(t)})` : `rgba(255,90,60,${0.85 * Math.sqrt(t)})`;
      context.fillRect(j * w, i * h, w, h);
    }
  return canvas;
}

function imageButton(prefix) {
  const canvas = el("canvas", { class: "image" }),
    grid = T.about.grid,
    size = contentOf(T.about.pixels).shape[1];
  const context = drawImage(canvas, Math.max(1, Math.round(128 / size)));
  const p = look.query - prefix,
    w = canvas.width / grid[1],
    h = canvas.height / grid[0];
  if (p >= 0) {
    context.strokeStyle = "#ffb000";
    context.lineWidth = 3;
    context.strokeRect((p % grid[1]) * w + 1.5, Math.floor(p / grid[1]) * h + 1.5, w - 3, h - 3);
  }
  return el(
    "button",
    {
      class: "imagebutton",
      "aria-label": "choose the query patch: click on the image, or use the slider",
      onclick: (e) => {
        const r = canvas.getBoundingClientRect();
        if (!e.clientX) return;
        look.query =
          prefix +
          Math.min(grid[0] - 1, Math.floor(((e.clientY - r.top) / r.height) * grid[0])) * grid[1] +
          Math.min(grid[1] - 1, Math.floor(((e.clientX - r.left) / r.width) * grid[1]));
        go({});
      },
    },
    canvas,
  );
}
