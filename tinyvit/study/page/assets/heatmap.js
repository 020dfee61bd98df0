// Arrays as pictures: one canvas pixel for each element, scaled by CSS. Blue is negative, red positive, the background
// zero.

const SHADES = 256;
let palette = null;

function makePalette() {
  const dark = matchesDark();
  const ground = dark ? [28, 30, 34] : [250, 250, 248];
  const ends = dark
    ? [
        [92, 158, 255],
        [255, 112, 92],
      ]
    : [
        [33, 84, 176],
        [190, 42, 34],
      ];
  palette = new Uint32Array(2 * SHADES + 1);
  for (let k = -SHADES; k <= SHADES; k++) {
    const t = Math.pow(Math.abs(k) / SHADES, 0.8),
      end = ends[k < 0 ? 0 : 1];
    const [r, g, b] = ground.map((c, i) => Math.round(c + (end[i] - c) * t));
    palette[k + SHADES] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
}

const matchesDark = () => {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const NOT_A_NUMBER = 0xff00b4ff,
  INFINITE = 0xff00ff80;

const settings = { log: false, locked: null };

function limitOf(array) {
  return settings.locked ?? (Math.max(Math.abs(array.min), Math.abs(array.max)) || 1);
}

function colour(x, limit) {
  if (Number.isNaN(x)) return NOT_A_NUMBER;
  if (!Number.isFinite(x)) return INFINITE;
  let t = Math.max(-1, Math.min(1, x / limit));
  if (settings.log && t !== 0) t = Math.sign(t) * Math.max(0, 1 + Math.log10(Math.abs(t)) / 4);
  return palette[Math.round(t * SHADES) + SHADES];
}

// The size of the picture of one matrix of an array, and the number of matrices.
function planes(array) {
  const s = array.shape,
    n = s.length;
  if (n === 0) return { rows: 1, columns: 1, count: 1 };
  if (n === 1) return { rows: 1, columns: s[0], count: 1 };
  return { rows: s[n - 2], columns: s[n - 1], count: array.size / (s[n - 2] * s[n - 1] || 1) };
}

function paint(canvas, array, plane) {
  if (!palette) makePalette();
  const { rows, columns } = planes(array),
    limit = limitOf(array);
  canvas.width = Math.max(columns, 1);
  canvas.height = Math.max(rows, 1);
  if (!array.data || !array.size) return;
  const picture = new ImageData(canvas.width, canvas.height),
    pixels = new Uint32Array(picture.data.buffer);
  const offset = plane * rows * columns;
  for (let i = 0; i < pixels.length; i++) pixels[i] = colour(array.data[offset + i], limit);
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// A small picture of an array: up to six of its matrices, side by side.
function thumbnail(v, label, chosen, onclick) {
  const array = contentOf(v),
    { rows, columns, count } = planes(array);
  const shown = Math.min(count, 6),
    strip = el("span", { class: "strip" });
  const scalar = array.size === 1 && array.data;
  if (scalar) strip.append(el("span", { class: "scalar" }, short(array.data[0], 5)));
  else if (!array.data) strip.append(el("span", { class: "scalar" }, "statistics only"));
  else {
    const height = rows === 1 ? 14 : Math.min(64, Math.max(22, rows * 4));
    const width = Math.min(rows === 1 ? 220 : 130, Math.max(22, Math.round((columns / rows) * height)), 300 / shown);
    for (let p = 0; p < shown; p++) {
      const canvas = el("canvas", { style: `width:${width}px;height:${height}px`, "aria-hidden": "true" });
      paint(canvas, array, p);
      strip.append(canvas);
    }
    if (count > shown) strip.append(el("span", { class: "more" }, `+${count - shown}`));
  }
  return el(
    "button",
    {
      class: "array" + (chosen ? " chosen" : ""),
      "aria-pressed": chosen ? "true" : "false",
      onclick,
    },
    el("span", { class: "label" }, el("b", {}, label), " ", el("span", { class: "shape" }, shapeWithLetters(v)), " "),
    strip,
    el(
      "span",
      { class: "norm" },
      array.size === 1 ? "" : `norm ${short(array.norm, 3)}`,
      array.nans + array.infinities ? el("span", { class: "bad" }, ` ${array.nans} NaN ${array.infinities} inf`) : null,
    ),
  );
}

function shapeWithLetters(v) {
  const shape = contentOf(v).shape,
    axes = axesOf(v);
  if (!shape.length) return "";
  const letters = shape.map((_, a) => (axes && !"1?".includes(axes[a]) ? axes[a] : ""));
  return shape.map((n, a) => letters[a] + n).join(letters.some(Boolean) ? " · " : " × ");
}
