// Which numbers a number is made of. The links were found by Python from what ran; here they are followed, and the one
// arithmetic of this page, sums and products of recorded terms, is held against the recorded result.

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

// The element of an array of `shape` that meets element `index` of a broadcast result.
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

// {terms: [{sign, cells: [{v, flat, name}], value}], how, total, exactly}: what element `flat` of value `v` is made of.
function termsOf(v, flat) {
  v = sourceOf(v);
  const origin = originOf(v),
    array = contentOf(v);
  if (origin[0] === "sum") {
    if (origin[1].some((part) => !contentOf(part).data)) return { how: "missing", terms: [] };
    const terms = origin[1].map((part) => cellTerm(part, flat, nameOf(part)));
    return sumOf(v, flat, terms, "gradients that meet here are added");
  }
  if (origin[0] === "kernel") return { how: "kernel", rule: origin[3], terms: [] };
  const step = stepOf(v);
  if (!step) return { how: origin[0], terms: [] };
  const [kind, sign, axes, start, source] = step.l;
  const needed = [array, ...step.o.filter((o) => o.v !== undefined).map((o) => contentOf(o.v))];
  if (source !== null) needed.push(arrayOf(source));
  if (needed.some((a) => !a.data))
    return { how: "missing", step, terms: [] };
  const operands = step.o.filter((o) => o.v !== undefined);
  const index = unravel(flat, array.shape);
  if (kind === "each") {
    const cells = step.o.map((o) =>
      o.v === undefined
        ? { c: Number(o.c) }
        : { v: o.v, flat: broadcastTo(index, contentOf(o.v).shape), name: o.n || nameOf(o.v) },
    );
    return { how: "each", sign, cells, step, terms: [], total: combined(sign, cells.map(valueOfCell)) };
  }
  if (kind === "matmul") {
    const [x, y] = operands,
      xs = contentOf(x.v).shape,
      ys = contentOf(y.v).shape,
      terms = [];
    const inner = xs[xs.length - 1];
    for (let k = 0; k < inner; k++) {
      const left = { v: x.v, flat: broadcastTo([...index.slice(0, -1), k], xs), name: x.n || nameOf(x.v) };
      const right = {
        v: y.v,
        flat: broadcastTo([...index.slice(0, -2), k, index[index.length - 1]], ys),
        name: y.n || nameOf(y.v),
      };
      terms.push({ cells: [left, right], value: valueOfCell(left) * valueOfCell(right) });
    }
    return sumOf(v, flat, terms, "row times column");
  }
  if (kind === "reduce") {
    const o = operands[0],
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
      terms.push(cellTerm(o.v, ravel(at, shape), o.n || nameOf(o.v)));
    }
    if (sign === "sum") return sumOf(v, flat, terms, "sum");
    if (sign === "mean") return sumOf(v, flat, terms, `mean of ${count}`, count);
    const best = terms.filter((t) => t.value === array.data[flat]);
    return {
      how: sign,
      terms: best.length ? best : terms.slice(0, 1),
      total: best.length ? best[0].value : NaN,
      of: count,
    };
  }
  if (kind === "view" || kind === "move") {
    let at = kind === "view" ? index.reduce((sum, i, a) => sum + i * axes[a], start) : arrayOf(source).data[flat];
    if (at < 0) return { how: "constant", terms: [] };
    for (const o of operands) {
      const size = contentOf(o.v).size;
      if (at < size) {
        const term = cellTerm(o.v, at, o.n || nameOf(o.v));
        return { how: "moved", step, terms: [term], total: term.value };
      }
      at -= size;
    }
  }
  if (kind === "scatter") {
    const o = operands[0],
      target = arrayOf(source).data,
      terms = [];
    for (let i = 0; i < target.length; i++) if (target[i] === flat) terms.push(cellTerm(o.v, i, o.n || nameOf(o.v)));
    return sumOf(v, flat, terms, "added up where they were read");
  }
  return { how: "none", step, terms: [] };
}

// A cell of an array to which the rule gave no name and that only moved elements about (a transpose, a reshape) is the
// cell it came from.
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

function sumOf(v, flat, terms, how, divisor = 1) {
  const total = terms.reduce((sum, t) => sum + t.value, 0) / divisor;
  return {
    how: "sum",
    words: how,
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
  return null; // a function such as exp: shown as recorded, not computed again
}

// Of each type the step between 1 and the next number, and that between the smallest numbers.
const ROUNDING = {
  float64: [2.3e-16, 5e-324],
  float32: [1.2e-7, 1.5e-45],
  float16: [9.8e-4, 6e-8],
  bfloat16: [7.9e-3, 1e-40],
};

// Whether the unfolded terms give the recorded number, up to the rounding of its type; null where nothing is computed.
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

// What an element is called: [token 5 (row 1, column 1), channel 17].
function indexWords(v, index) {
  const axes = axesOf(v);
  return index.map((i, a) => axisWord(axes ? axes[a] : "", i, contentOf(v).shape[a]));
}

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
    B: "image",
    H: "head",
    D: "of head",
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
