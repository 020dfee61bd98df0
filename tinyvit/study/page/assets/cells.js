// The numbers that a number was computed from. Python found the links while it ran the rules; the page only follows
// them. Its only arithmetic is sums and products of recorded terms, which it compares with the recorded result.

function unravel(flat, shape) {
  const index = new Array(shape.length);
  for (let a = shape.length - 1; a >= 0; a--) {
    index[a] = flat % shape[a];
    flat = Math.floor(flat / shape[a]);
  }
  return index;
}

function ravel(index, shape) {
  let flat = 0;
  for (let a = 0; a < shape.length; a++) flat = flat * shape[a] + index[a];
  return flat;
}

// The element of an array of `shape` that element `index` of a broadcast result was computed from.
function broadcastTo(index, shape) {
  const skip = index.length - shape.length;
  return ravel(
    shape.map((n, a) => (n === 1 ? 0 : index[a + skip])),
    shape,
  );
}

const stepOf = (v) => {
  const [kind, op, direction, k] = originOf(sourceOf(v));
  return kind === "step" ? T.ops[op].steps[direction][k] : null;
};

// What element `flat` of value `v` was computed from: {how, terms: [{cells: [{v, flat, name}], value}], total, ...}.
function termsOf(v, flat) {
  v = sourceOf(v);
  const origin = originOf(v);
  if (origin[0] === "sum") {
    if (origin[1].some((part) => !contentOf(part).data)) return { how: "missing", terms: [] };
    const terms = origin[1].map((part) => cellTerm(part, flat, nameOf(part)));
    return sumOf(terms, "gradients are added here");
  }
  if (origin[0] === "kernel") return { how: "kernel", rule: origin[3], terms: [] };
  const step = stepOf(v);
  if (!step) return { how: origin[0], terms: [] };
  const [kind, , , , source] = step.l,
    arrays = step.o.filter((o) => o.v !== undefined);
  const needed = [contentOf(v), ...arrays.map((o) => contentOf(o.v)), ...(source === null ? [] : [arrayOf(source)])];
  if (needed.some((a) => !a.data)) return { how: "missing", step, terms: [] };
  const unfold = UNFOLD[kind] || (() => ({ how: "none", terms: [] }));
  return { step, ...unfold(step, arrays, contentOf(v), flat) };
}

// How each kind of link leads from an element of `array`, the result of a step, to elements of its operands.
const UNFOLD = {
  each: elementwiseTerms,
  matmul: productTerms,
  reduce: reducedTerms,
  view: movedTerm,
  move: movedTerm,
  scatter: scatteredTerms,
};

function elementwiseTerms(step, arrays, array, flat) {
  const sign = step.l[1],
    index = unravel(flat, array.shape);
  const cells = step.o.map((o) =>
    o.v === undefined ? { c: Number(o.c) } : { ...operand(o), flat: broadcastTo(index, contentOf(o.v).shape) },
  );
  return { how: "each", sign, cells, terms: [], total: combined(sign, cells.map(valueOfCell)) };
}

function productTerms(step, [x, y], array, flat) {
  const index = unravel(flat, array.shape),
    xs = contentOf(x.v).shape,
    ys = contentOf(y.v).shape,
    terms = [];
  const row = index.slice(0, -1),
    leading = index.slice(0, -2),
    column = index[index.length - 1];
  for (let k = 0; k < xs[xs.length - 1]; k++) {
    const left = { ...operand(x), flat: broadcastTo([...row, k], xs) };
    const right = { ...operand(y), flat: broadcastTo([...leading, k, column], ys) };
    terms.push({ cells: [left, right], value: valueOfCell(left) * valueOfCell(right) });
  }
  return sumOf(terms, "row times column");
}

function reducedTerms(step, [o], array, flat) {
  const [, sign, axes] = step.l,
    shape = contentOf(o.v).shape,
    terms = [];
  const kept = shape.map((n, a) => (axes.includes(a) ? 1 : n)),
    outer = unravel(flat, kept);
  const sizes = axes.map((a) => shape[a]),
    count = sizes.reduce((m, n) => m * n, 1);
  for (let k = 0; k < count; k++) {
    const inner = unravel(k, sizes),
      at = outer.slice();
    axes.forEach((a, i) => (at[a] = inner[i]));
    terms.push(cellTerm(o.v, ravel(at, shape), operand(o).name));
  }
  if (sign === "sum") return sumOf(terms, "sum");
  if (sign === "mean") return sumOf(terms, `mean of ${count}`, count);
  const best = terms.filter((t) => t.value === array.data[flat]); // the largest or the smallest, with its ties
  const total = best.length ? best[0].value : NaN;
  return { how: sign, terms: best.length ? best : terms.slice(0, 1), total, of: count };
}

function movedTerm(step, arrays, array, flat) {
  const [kind, , increments, start, source] = step.l;
  let at =
    kind === "view"
      ? unravel(flat, array.shape).reduce((sum, i, a) => sum + i * increments[a], start)
      : arrayOf(source).data[flat];
  if (at < 0) return { how: "constant", terms: [] };
  for (const o of arrays) {
    const size = contentOf(o.v).size;
    if (at < size) {
      const term = cellTerm(o.v, at, operand(o).name);
      return { how: "moved", terms: [term], total: term.value };
    }
    at -= size;
  }
  return { how: "none", terms: [] };
}

function scatteredTerms(step, [o], array, flat) {
  const target = arrayOf(step.l[4]).data,
    terms = [];
  for (let i = 0; i < target.length; i++) if (target[i] === flat) terms.push(cellTerm(o.v, i, operand(o).name));
  return sumOf(terms, "sum of the elements that were read from here");
}

const operand = (o) => ({ v: o.v, name: o.n || nameOf(o.v) });

// If the rule gave an array no name, and it only moved elements (a transpose, a reshape), its cell stands for the cell
// that the element came from.
function settled(cell) {
  for (let hops = 0; hops < 8 && cell.v !== undefined && !cell.name; hops++) {
    const step = stepOf(cell.v);
    if (!step || !["view", "move"].includes(step.l[0])) break;
    const from = termsOf(cell.v, cell.flat);
    if (from.how !== "moved") break;
    cell = from.terms[0].cells[0];
  }
  return cell;
}

function cellTerm(v, flat, name) {
  const cell = { v, flat, name };
  return { cells: [cell], value: valueOfCell(cell) };
}

const valueOfCell = (cell) => (cell.v === undefined ? cell.c : contentOf(cell.v).data[cell.flat]);

function sumOf(terms, words, divisor = 1) {
  const total = terms.reduce((sum, t) => sum + t.value, 0) / divisor;
  return {
    how: "sum",
    words,
    terms,
    total,
    divisor,
    size: terms.reduce((s, t) => s + Math.abs(t.value), 0) / divisor,
  };
}

function combined(sign, x) {
  if (sign === "+") return x[0] + x[1];
  if (sign === "-") return x[0] - x[1];
  if (sign === "*") return x[0] * x[1];
  if (sign === "/") return x[0] / x[1];
  if (sign === "neg") return -x[0];
  if (sign === "where") return x[0] ? x[1] : x[2];
  return null; // the page does not recompute functions such as exp
}

// For each dtype, the step from 1 to the next number, and the step between the smallest numbers.
const ROUNDING = {
  float64: [2.3e-16, 5e-324],
  float32: [1.2e-7, 1.5e-45],
  float16: [9.8e-4, 6e-8],
  bfloat16: [7.9e-3, 1e-40],
};

// Whether the terms give the recorded number, up to the rounding of its dtype; null where nothing is computed.
function reproduces(v, flat, unfolded) {
  if (unfolded.total === undefined || unfolded.total === null) return null;
  const array = contentOf(v),
    recorded = array.data[flat];
  if (Object.is(recorded, unfolded.total) || (Number.isNaN(recorded) && Number.isNaN(unfolded.total))) return true;
  const [eps, least] = ROUNDING[array.dtype] || ROUNDING.float64;
  const size = unfolded.how === "sum" ? unfolded.size : Math.max(Math.abs(recorded), Math.abs(unfolded.total));
  const count = unfolded.terms.length;
  return Math.abs(recorded - unfolded.total) <= eps * (4 + Math.sqrt(count)) * size + least * (1 + count);
}

// An index in words: [token 5 (row 1, column 1), channel 17].
function indexWords(v, index) {
  const axes = axesOf(v);
  return index.map((i, a) => {
    const known = axes && axes[a] !== "?";
    return known ? axisWord(axes[a], i, contentOf(v).shape[a]) : `${plainWord(a, index.length)} ${i}`;
  });
}

// What an axis without a known meaning is called: by its place.
const plainWord = (a, n) => (n === 1 ? "element" : a === n - 1 ? "column" : a === n - 2 ? "row" : `axis ${a}:`);

// The samples of a batch are called images where the page shows one.
const sampleWord = T.about.pixels === undefined ? "sample" : "image";

function axisWord(letter, i, n) {
  const grid = T.about.grid,
    prefix = T.about.prefix || 0;
  if ((letter === "N" || letter === "S") && grid && n === grid[0] * grid[1] + prefix) {
    if (i < prefix) return i === 0 && T.about.pool === "cls" ? "class token" : `register ${i}`;
    const p = i - prefix;
    return `token ${i} (row ${Math.floor(p / grid[1])}, column ${p % grid[1]})`;
  }
  if (letter === "K" && T.about.classes && n === T.about.classes.length) return `class ${T.about.classes[i]}`;
  const word = {
    B: sampleWord,
    H: "head",
    D: "element",
    C: "channel",
    N: "token",
    S: "token",
    K: "unit",
    O: "filter",
    R: "row",
    y: "y",
    x: "x",
    i: "i",
    j: "j",
  }[letter];
  return word ? `${word} ${i}` : String(i);
}
