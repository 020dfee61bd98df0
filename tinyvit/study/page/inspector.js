// One array, large: a picture to point into, the numbers around the cursor, and why one of them is what it is.

let hovered = null;

function current() {
  const a = S.a && arrayByLabel(S.op, S.dir, S.a);
  return a ? a.v : null;
}

function buildInspector() {
  const box = $("inspector"), v = current();
  if (v === null) return box.replaceChildren(el("p", { class: "hint" }, "Choose an array to look into it: point at its cells, and press Enter on one to see why it is what it is."));
  const array = contentOf(v), { rows, columns } = planes(array);
  const index = S.index || unravel(largestOf(array), array.shape), lead = Math.max(0, array.shape.length - 2);
  const statistics = `min ${short(array.min)}, max ${short(array.max)}, mean ${short(array.mean)}, norm ${short(array.norm)}, ${array.zeros} zeros${array.nans ? `, ${array.nans} NaN` : ""}${array.infinities ? `, ${array.infinities} infinite` : ""}`;
  const parts = [el("h3", { id: "inspector-title" }, S.a, " ", el("span", { class: "shape" }, shapeWithLetters(v))), el("p", { class: "stats" }, originWords(v), " ", statistics)];
  if (!array.data) parts.push(el("p", { class: "doc" }, "Only its statistics are on this page: it did not fit."));
  else {
    for (let a = 0; a < lead; a++) if (array.shape[a] > 1) parts.push(slider(v, index, a));
    const pointed = el("p", { id: "pointed", class: "pointed" }, cellWords(v, index));
    if (array.size === 1) parts.push(pointed, tools(v, array));
    else parts.push(picture(v, array, index, rows, columns), legend(array), pointed, table(v, array, index), tools(v, array));
    parts.push(el("section", { id: "why", "aria-label": "why this number" }, why(v, ravel(index, array.shape))));
  }
  box.replaceChildren(...parts);
}

// What is looked at until somebody points elsewhere: the largest number.
function largestOf(array) {
  if (!array.data) return 0;
  let at = 0, most = -1;
  for (let i = 0; i < array.size; i++) {
    const size = Math.abs(array.data[i]);
    if (size > most) { most = size; at = i; }
  }
  return at;
}

function originWords(v) {
  const [kind, op, dir] = originOf(sourceOf(v));
  if (kind === "leaf") return `${nameOf(v)}.`;
  if (kind === "seed") return "Where the way back begins.";
  if (kind === "sum") return "Gradients that met here, added.";
  const home = T.ops[op];
  return `By ${home.module ? home.module + " · " : ""}${titleOf(home)}, ${dir ? "backward" : "forward"}.`;
}

function slider(v, index, a) {
  const shape = contentOf(v).shape, word = indexWords(v, index)[a];
  const input = el("input", { type: "range", min: 0, max: shape[a] - 1, value: index[a], "aria-label": `axis ${a}: ${word}`,
    oninput: (e) => { const next = index.slice(); next[a] = Number(e.target.value); go({ index: next }); } });
  return el("label", { class: "slider" }, el("span", {}, word), input);
}

function picture(v, array, index, rows, columns) {
  const canvas = el("canvas", { "aria-hidden": "true" }), mark = el("i", { class: "mark" });
  const plane = planeOf(array, index);
  paint(canvas, array, plane);
  const ratio = rows === 1 ? Math.max(0.05, 1 / Math.min(columns, 24)) : Math.min(1.4, Math.max(0.12, rows / columns));
  const box = el("div", { class: "picture", tabindex: "0", role: "img", style: `aspect-ratio:${(1 / ratio).toFixed(3)}`,
    "aria-label": `${S.a} as a picture, ${rows} rows by ${columns} columns; arrow keys move, Enter explains` }, canvas, mark);
  const at = (e) => {
    const r = box.getBoundingClientRect();
    const i = Math.min(rows - 1, Math.max(0, Math.floor(((e.clientY - r.top) / r.height) * rows)));
    const j = Math.min(columns - 1, Math.max(0, Math.floor(((e.clientX - r.left) / r.width) * columns)));
    return moved(array, index, i, j);
  };
  const put = (cell) => {
    const n = array.shape.length, i = n > 1 ? cell[n - 2] : 0, j = n ? cell[n - 1] : 0;
    mark.style.cssText = `left:${(100 * j) / columns}%;top:${(100 * i) / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
  };
  put(index);
  box.addEventListener("pointermove", (e) => { const cell = at(e); put(cell); $("pointed").textContent = cellWords(v, cell); });
  box.addEventListener("pointerleave", () => { put(index); $("pointed").textContent = cellWords(v, index); });
  box.addEventListener("click", (e) => go({ index: at(e) }, true, "picture"));
  box.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (e.key === "Enter") { e.preventDefault(); e.stopPropagation(); $("why").querySelector("button")?.focus(); }
    if (!step) return;
    e.preventDefault();
    e.stopPropagation();
    const n = array.shape.length, i = (n > 1 ? index[n - 2] : 0) + step[0], j = (n ? index[n - 1] : 0) + step[1];
    if (i >= 0 && j >= 0 && i < rows && j < columns) go({ index: moved(array, index, i, j) }, false, "picture");
  });
  return box;
}

function moved(array, index, i, j) {
  const next = index.slice(), n = array.shape.length;
  if (n > 1) next[n - 2] = i;
  if (n) next[n - 1] = j;
  return next;
}

function planeOf(array, index) {
  const n = array.shape.length;
  return n > 2 ? ravel(index.slice(0, n - 2), array.shape.slice(0, n - 2)) : 0;
}

function cellWords(v, index) {
  const array = contentOf(v);
  return `${S.a}[${index.join(", ")}] = ${exact(array.data[ravel(index, array.shape)], array.code)}   ${indexWords(v, index).join(" · ")}`;
}

function legend(array) {
  const limit = limitOf(array);
  return el("div", { class: "legend", "aria-hidden": "true" }, el("span", {}, short(-limit, 3)), el("i", { class: "ramp" }), el("span", {}, short(limit, 3)));
}

// The numbers around the cursor, as a table: what eyes read up close, and what a screen reader reads at all.
function table(v, array, index) {
  const { rows, columns } = planes(array), n = array.shape.length;
  const i0 = n > 1 ? index[n - 2] : 0, j0 = n ? index[n - 1] : 0;
  const span = (at, count, size) => { const first = Math.max(0, Math.min(at - Math.floor(size / 2), count - size)); return Array.from({ length: Math.min(size, count) }, (_, k) => first + k); };
  const is = span(i0, rows, 5), js = span(j0, columns, 5);
  const cell = (i, j) => {
    const at = moved(array, index, i, j), x = array.data[ravel(at, array.shape)], here = i === i0 && j === j0;
    return el("td", { class: here ? "here" : "" }, el("button", { class: "number", tabindex: here ? "0" : "-1", title: exact(x, array.code), "aria-label": `${S.a} ${at.join(" ")}: ${exact(x, array.code)}`, onclick: () => go({ index: at }, true) }, short(x, 3)));
  };
  return el("div", { class: "scroll" }, el("table", { class: "numbers" },
    el("thead", {}, el("tr", {}, el("td", {}), js.map((j) => el("th", { scope: "col" }, j)))),
    el("tbody", {}, is.map((i) => el("tr", {}, el("th", { scope: "row" }, i), js.map((j) => cell(i, j)))))));
}

function tools(v, array) {
  const toggle = (label, on, act) => el("button", { class: "tool", "aria-pressed": on ? "true" : "false", onclick: act }, label);
  return el("p", { class: "tools" },
    toggle("log scale", settings.log, () => { settings.log = !settings.log; draw(); }),
    toggle("lock scale", settings.locked !== null, () => { settings.locked = settings.locked === null ? limitOf(array) : null; draw(); }),
    el("button", { class: "tool", onclick: (e) => copied(e, numpyText(array)) }, "copy as NumPy"),
    el("button", { class: "tool", onclick: (e) => copied(e, pythonText()) }, "copy as Python"),
    el("button", { class: "tool", onclick: (e) => copied(e, location.href) }, "copy link"));
}

function numpyText(array) {
  const dtype = { f4: "float32", f8: "float64", i4: "int32", u1: "uint8" }[array.code];
  if (array.size > 20000) return `# ${array.size} elements: too many to copy; trace.save_html and trace[...] have them`;
  const numbers = Array.from(array.data, (x) => exact(x, array.code).replace("NaN", "np.nan").replace("inf", "np.inf")).join(", ");
  return `np.array([${numbers}], dtype=np.${dtype}).reshape(${JSON.stringify(array.shape).replace("[", "(").replace("]", array.shape.length === 1 ? ",)" : ")")})`;
}

function pythonText() {
  const o = T.ops[S.op], a = arrayByLabel(S.op, S.dir, S.a), at = S.index ? `[${S.index.join(", ")}]` : "";
  const refs = S.dir ? [["incoming", o.din], ["outgoing", o.dout]] : [["inputs", o.in], ["outputs", o.out]];
  for (const [part, list] of refs) {
    const i = list.findIndex((x) => x && x.v === a.v);
    if (i >= 0) return `trace[${JSON.stringify(o.key)}]${S.dir ? ".backward" : ""}.${part}[${i}].array${at}`;
  }
  return `trace[${JSON.stringify(o.key)}]${S.dir ? ".backward" : ""}.narration().steps[${a.k}].value${at}`;
}

async function copied(event, text) {
  const button = event.target, before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { prompt("Copy this:", text); }
  setTimeout(() => (button.textContent = before), 1200);
}

// Why this number --------------------------------------------------------------------------------------------------

const SHOWN_TERMS = 8;

function why(v, flat) {
  const array = contentOf(v), recorded = array.data[flat], unfolded = termsOf(v, flat);
  const head = el("h3", {}, "Why ", el("output", {}, short(recorded, 5)), "?");
  const body = explanation(v, flat, unfolded);
  const back = S.trail.length ? el("button", { class: "tool", onclick: goBack }, "← back along the trail") : null;
  return [head, ...body, back].filter(Boolean);
}

function explanation(v, flat, u) {
  const array = contentOf(v), verdict = sumVerdict(v, flat, u);
  if (u.how === "leaf") return [el("p", {}, leafWords(v))];
  if (u.how === "seed") return [el("p", {}, "This is the slope of the loss for itself: 1. Every gradient of this page is this 1, carried back.")];
  if (u.how === "missing") return [el("p", {}, "What it is made of did not fit on this page: only its statistics are here.")];
  if (u.how === "constant") return [el("p", {}, "A constant: nothing was read here (the padding around an image, say).")];
  if (u.how === "kernel") return [el("p", {}, `Computed by the kernel ${T.ops[originOf(sourceOf(v))[1]].kernel}. The rule gives, step by step: `, chip({ v: u.rule, flat, name: nameOf(u.rule) || nameOf(v) }))];
  if (u.how === "none") return [el("p", {}, `${u.step.s}: this step is not unfolded element by element; open what goes into it from the rule.`)];
  if (u.how === "moved") return [el("p", {}, "It is an element of another array, in another place: "), el("p", { class: "equation" }, chip(u.terms[0].cells[0])), verdict];
  if (u.how === "max" || u.how === "min") return [el("p", {}, `The ${u.how === "max" ? "largest" : "smallest"} of ${u.of}: `), el("p", { class: "equation" }, u.terms.map((t) => chip(t.cells[0]))), verdict];
  if (u.how === "each") return [el("p", { class: "equation" }, el("b", {}, `${S.a}[${unravel(flat, array.shape).join(", ")}]`), " = ", expression(u)), el("p", { class: "source" }, u.step.s), verdict].filter(Boolean);
  const order = u.terms.slice().sort((a, b) => Math.abs(b.value) - Math.abs(a.value)), first = order.slice(0, SHOWN_TERMS), rest = order.slice(SHOWN_TERMS);
  return [
    el("p", {}, `${u.words}${u.terms.length > 1 ? `, ${u.terms.length} terms, the largest first` : ""}:`),
    el("ul", { class: "terms" }, first.map((t) => el("li", {}, t.cells.flatMap((c, i) => [i ? " × " : null, chip(c)]), t.cells.length > 1 ? el("span", { class: "value" }, `= ${short(t.value, 5)}`) : null))),
    rest.length ? el("p", { class: "rest" }, `… ${rest.length} more, together ${short(rest.reduce((s, t) => s + t.value, 0), 5)}`) : null,
    verdict,
  ].filter(Boolean);
}

// Terms set against the record: equal up to the rounding of the recorded type, or the page says that they are not.
function sumVerdict(v, flat, u) {
  const ok = reproduces(v, flat, u), array = contentOf(v);
  if (ok === null) return el("p", { class: "verdict" }, "Recorded as ", el("b", {}, exact(array.data[flat], array.code)), "; a function is not computed again here.");
  const total = u.total === undefined ? "" : short(u.total, 8);
  return el("p", { class: `verdict ${ok ? "agrees" : "wrong"}` }, ok ? `= ${total} ✓ recorded: ${exact(array.data[flat], array.code)}` : `The terms give ${total}, but ${exact(array.data[flat], array.code)} was recorded.`);
}

function leafWords(v) {
  const name = nameOf(v);
  if (name === "image") return "A pixel of the image, normalized: here the way back ends.";
  if (T.about.parameters && T.about.parameters.includes(name)) return `An element of ${name}, a parameter: it was learned. Its gradient is ${"d" + name}.`;
  return `${name}: given from outside.`;
}

// How strongly a sign binds, and how strongly its operand number i must bind to need no parentheses.
const binds = (sign) => ({ "+": 1, "-": 1, "*": 2, "/": 2, neg: 2 })[sign] || 9;
const needs = (sign, i) => ({ "+": 1, "-": i ? 2 : 1, "*": 2, "/": i ? 3 : 2, neg: 3 })[sign] || 0;
const SIGNS = { "+": " + ", "-": " − ", "*": " × ", "/": " / " };

// An elementwise expression with its numbers in place; what the rule gave no name is written out.
function expression(u, depth = 0) {
  const parts = u.cells.map((c, i) => {
    const inner = c.v !== undefined && !c.name && depth < 3 ? termsOf(c.v, c.flat) : null;
    if (inner && inner.how === "each") return binds(inner.sign) < needs(u.sign, i) ? el("span", {}, "(", expression(inner, depth + 1), ")") : expression(inner, depth + 1);
    return c.v === undefined ? el("span", { class: "number" }, short(c.c, 6)) : chip(c);
  });
  if (u.sign === "neg") return el("span", {}, "−", parts[0]);
  if (SIGNS[u.sign]) return el("span", {}, parts[0], SIGNS[u.sign], parts[1]);
  return el("span", {}, `${u.sign}(`, parts.flatMap((p, i) => [i ? ", " : null, p]), ")");
}

// A number with its name, to follow further back.
function chip(cell) {
  cell = settled(cell);
  const array = contentOf(cell.v), index = unravel(cell.flat, array.shape), step = stepOf(cell.v);
  const name = cell.name || (step ? step.s : nameOf(cell.v)) || "it";
  return el("button", { class: "chipcell", title: `${name}[${index.join(", ")}] = ${exact(array.data[cell.flat], array.code)}`, onclick: () => follow(cell) },
    el("small", {}, `${name.length > 22 ? name.slice(0, 20) + "…" : name}${index.length ? `[${index.join(",")}]` : ""}`), el("span", {}, array.data ? short(array.data[cell.flat], 5) : "?"));
}

function follow(cell) {
  const home = homeOf(cell.v);
  if (!home || !home.a) return;
  const here = { op: S.op, dir: S.dir, a: S.a, index: S.index };
  go({ view: "walk", op: home.op, dir: home.dir, a: home.a, index: unravel(cell.flat, contentOf(cell.v).shape), trail: [...S.trail, here] }, true, "why");
}

function goBack() {
  const trail = S.trail.slice(), last = trail.pop();
  go({ ...last, trail }, true, "why");
}
