// The attention of every head laid over the image, and its gradient.

const look = { which: "p", query: null };

// What a link asks for; the rest as it is.
function lookAt(which, query) {
  if (which && ["p", "dp", "ds"].includes(which)) look.which = which;
  if (query !== null && /^\d+$/.test(query)) look.query = Number(query);
}

function attentionView() {
  if (!T.attention.length || !T.about.grid)
    return [el("p", { class: "doc" }, "Nothing here attends to patches of an image.")];
  const kinds = [
    ["p", "A", "attention weights: how much each token takes from each other one"],
    ["dp", "dA", "how the loss would change with each weight"],
    ["ds", "dS", "the gradient of the scores, before softmax"],
  ];
  const choose = el(
    "div",
    { class: "tools", role: "group", "aria-label": "which array" },
    kinds.map(([k, name]) =>
      el(
        "button",
        {
          class: "tool",
          "aria-pressed": look.which === k ? "true" : "false",
          onclick: () => {
            look.which = k;
            go({});
          },
        },
        name,
      ),
    ),
  );
  const grid = T.about.grid,
    prefix = T.about.prefix || 0,
    n = grid[0] * grid[1] + prefix;
  look.query = Math.min(look.query ?? Math.floor(n / 2), n - 1);
  const token = el(
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
  const rows = T.attention.map((layer) => {
    const v = layer[look.which],
      array = contentOf(v),
      heads = array.shape[1],
      S_ = array.shape[3];
    const limit = look.which === "p" ? 1 : Math.max(Math.abs(array.min), Math.abs(array.max)) || 1;
    return el(
      "div",
      { class: "layer" },
      el("h4", {}, layer.title),
      el(
        "div",
        { class: "heads" },
        Array.from({ length: heads }, (_, h) => {
          const start = (h * array.shape[2] + look.query) * S_,
            row = array.data.subarray(start, start + S_);
          const total = row.reduce((s, x) => s + x, 0);
          const own = prefix ? ` · class token ${short(row[0], 2)}` : "";
          return el(
            "figure",
            {},
            overlay(row.subarray(prefix), grid, limit),
            el(
              "figcaption",
              {},
              el(
                "button",
                {
                  class: "link",
                  onclick: () =>
                    go({ view: "walk", op: layer.op, dir: 1, a: look.which, index: [0, h, look.query, 0] }, true),
                },
                `head ${h}`,
              ),
              ` Σ ${short(total, 3)}${own}`,
            ),
          );
        }),
      ),
    );
  });
  const caveat =
    "Attention says where a head looked, not why the model decided; the gradients beside it say what would have changed the loss.";
  return [
    el("h2", {}, "Attention, laid over the image"),
    el(
      "p",
      { class: "doc" },
      kinds.find((k) => k[0] === look.which)[2] +
        `. ${look.which === "p" ? "Scale 0 to 1." : "Scale of each layer by itself."} ${caveat}`,
    ),
    el("div", { class: "row" }, imageButton(prefix), el("div", {}, choose, token)),
    ...rows,
  ];
}

// The image as a picture, its pixels squares; a click chooses the patch that looks.
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
      "aria-label": "choose the patch that looks: click on the image, or use the slider",
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
