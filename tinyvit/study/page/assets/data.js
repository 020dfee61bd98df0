// The document that Python wrote: operations, values with their origins, arrays. This file computes nothing.

const T = JSON.parse(document.getElementById("trace").textContent);
const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array };
const blobs = {};

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64),
    bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// A blob is deflated, with the bytes of equal significance next to each other; decompressing verifies its checksum.
async function unpack(code) {
  const packed = bytesOf(document.getElementById("blob-" + code).textContent.trim());
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = TYPES[code].BYTES_PER_ELEMENT,
    count = planes.length / width,
    bytes = new Uint8Array(planes.length);
  for (let b = 0; b < width; b++) {
    const plane = b * count;
    for (let i = 0; i < count; i++) bytes[i * width + b] = planes[plane + i];
  }
  blobs[code] = new TYPES[code](bytes.buffer);
}

// An array: {shape, dtype, data, min, max, mean, norm, zeros, nans, infinities}. `data` is null if the page has only
// the statistics; min and max are those of the finite elements.
const arrays = new Map();
function arrayOf(number) {
  let a = arrays.get(number);
  if (!a) {
    const [code, offset, shape, statistics, dtype] = T.arrays[number],
      [min, max, mean, norm, zeros, nans, infinities] = statistics.map(Number);
    const size = shape.reduce((m, n) => m * n, 1);
    const data = offset === null ? null : blobs[code].subarray(offset, offset + size);
    a = { number, code, dtype, shape, size, data, min, max, mean, norm, zeros, nans, infinities };
    arrays.set(number, a);
  }
  return a;
}

const nameOf = (v) => T.values[v][0];
const axesOf = (v) => T.values[v][2];
const originOf = (v) => T.values[v][3];
const contentOf = (v) => arrayOf(T.values[v][1]);
const sourceOf = (v) => (originOf(v)[0] === "same" ? sourceOf(originOf(v)[1]) : v);

// Numbers ----------------------------------------------------------------------------------------------------------

// The shortest text that parses to the same number of its dtype.
function exact(x, code) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "inf" : "-inf";
  if (code !== "f4") return String(x);
  for (let digits = 6; digits <= 9; digits++) {
    const text = x.toPrecision(digits);
    if (Math.fround(Number(text)) === x) return String(Number(text));
  }
  return String(x);
}

function short(x, digits = 4) {
  if (typeof x !== "number") return String(x);
  if (!Number.isFinite(x)) return exact(x);
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-3)
    return x
      .toExponential(Math.max(digits - 2, 1))
      .replace("e+", "e")
      .replace("-", "−")
      .replace("e-", "e−");
  return String(Number(x.toPrecision(digits))).replace("-", "−");
}

const bytesText = (n) =>
  n < 1024 ? n + " B" : n < 1048576 ? (n / 1024).toFixed(n < 10240 ? 1 : 0) + " KB" : (n / 1048576).toFixed(1) + " MB";
const shapeText = (shape) => (shape.length ? shape.join(" × ") : "a number");

// The page -----------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "html")
      node.innerHTML = value; // only text that Python wrote
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

// A table in a box that scrolls. `columns` may be null; `row` makes the elements of `rows`.
function table(attributes, columns, rows) {
  const names = columns && columns.map((c) => (c === "" ? el("td") : el("th", { scope: "col" }, c)));
  const hasButtons = rows.some((r) => r.querySelector("button"));
  return el(
    "div",
    { class: "scroll", tabindex: hasButtons ? null : "0" }, // the keyboard reaches it, to scroll
    el("table", attributes, names && el("thead", {}, el("tr", {}, names)), el("tbody", {}, rows)),
  );
}

// A row of a table: its name, then cells or their contents.
function row(name, ...cells) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, name),
    cells.map((c) => (c instanceof HTMLTableCellElement ? c : el("td", {}, c))),
  );
}

// A cell with a bar that fills `share` of it; the bar is striped if its number is not finite.
function bar(share, isBroken = false) {
  const kind = isBroken ? "bar broken" : "bar";
  return el("td", { class: "gauge" }, el("i", { class: kind, style: `width:${(100 * share).toFixed(1)}%` }));
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child) node.append(child);
  return node;
}
