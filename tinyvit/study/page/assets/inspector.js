// One array in detail: a large picture, the numbers around the cursor, and how the chosen one was computed.

let hovered = null;

function current() {
  const a = S.a && arrayByLabel(S.op, S.dir, S.a);
  return a ? a.v : null;
}

function buildInspector() {
  const box = $("inspector"),
    v = current();
  if (v === null)
    return box.replaceChildren(
      el(
        "p",
        { class: "hint" },
        "Choose an array to see its cells. Press Enter on a cell to see how its number was computed.",
      ),
    );
  const array = contentOf(v),
    { rows, columns } = planes(array);
  const index = S.index || unravel(largestOf(array), array.shape),
    lead = Math.max(0, array.shape.length - 2);
  const statistics = `min ${short(array.min)}, max ${short(array.max)}, mean ${short(array.mean)}, norm ${short(array.norm)}, ${array.zeros} zeros${array.nans ? `, ${array.nans} NaN` : ""}${array.infinities ? `, ${array.infinities} infinite` : ""}`;
  const parts = [
    el("h2", { id: "inspector-title" }, withOwn(S.a, arrayByLabel(S.op, S.dir, S.a)), " ", el("span", { class: "shape" }, shapeWithLetters(v))),
    el("p", { class: "stats" }, originWords(v), " ", statistics),
  ];
  if (!array.data) parts.push(el("p", { class: "doc" }, "The page has only the statistics of this array, because it did not fit."));
  else {
    for (let a = 0; a < lead; a++) if (array.shape[a] > 1) parts.push(slider(v, index, a));
    const pointed = el("p", { id: "pointed", class: "pointed" }, cellWords(v, index));
    if (array.size === 1) parts.push(pointed, tools(v, array));
    else
      parts.push(
        picture(v, array, index, rows, columns),
        axesWords(v, rows),
        legend(array),
        pointed,
        nearby(array, index),
        tools(v, array),
      );
    parts.push(el("section", { id: "why", "aria-label": "why this number" }, why(v, ravel(index, array.shape))));
  }
  box.replaceChildren(...parts);
}

// The cell that is chosen at first: that of the largest number, or of the first NaN.
function largestOf(array) {
  if (!array.data) return 0;
  let at = 0,
    most = -1;
  for (let i = 0; i < array.size; i++) {
    const size = Number.isNaN(array.data[i]) ? Infinity : Math.abs(array.data[i]);
    if (size > most) {
      most = size;
      at = i;
    }
  }
  return at;
}

function originWords(v) {
  const [kind, op, dir] = originOf(sourceOf(v));
  if (kind === "leaf") return `${nameOf(v)}.`;
  if (kind === "seed") return "The gradient that backward started from.";
  if (kind === "unexplained") return "";
  if (kind === "hook") return "Returned by a hook that the program registered.";
  if (kind === "sum") return "The sum of the gradients from several operations.";
  const home = T.ops[op];
  return `Computed by ${home.module ? home.module + " · " : ""}${titleOf(home)}, ${dir ? "backward" : "forward"}.`;
}

function slider(v, index, a) {
  const shape = contentOf(v).shape,
    word = indexWords(v, index)[a];
  const input = el("input", {
    type: "range",
    min: 0,
    max: shape[a] - 1,
    value: index[a],
    "aria-label": `axis ${a}: ${word}`,
    oninput: (e) => {
      const next = index.slice();
      next[a] = Number(e.target.value);
      go({ index: next });
    },
  });
  return el("label", { class: "slider" }, el("span", {}, word), input);
}

function picture(v, array, index, rows, columns) {
  const canvas = el("canvas", { "aria-hidden": "true" }),
    mark = el("i", { class: "mark" });
  const plane = planeOf(array, index);
  paint(canvas, array, plane);
  const ratio = rows === 1 ? Math.max(0.05, 1 / Math.min(columns, 24)) : Math.min(1.4, Math.max(0.12, rows / columns));
  const box = el(
    "div",
    {
      class: "picture",
      tabindex: "0",
      role: "img",
      style: `aspect-ratio:${(1 / ratio).toFixed(3)}`,
      "aria-label": `${S.a} as a picture, ${rows} rows by ${columns} columns; arrow keys move, Enter explains`,
    },
    canvas,
    mark,
  );
  const at = (e) => {
    const r = box.getBoundingClientRect();
    const i = Math.min(rows - 1, Math.max(0, Math.floor(((e.clientY - r.top) / r.height) * rows)));
    const j = Math.min(columns - 1, Math.max(0, Math.floor(((e.clientX - r.left) / r.width) * columns)));
    return moved(array, index, i, j);
  };
  const put = (cell) => {
    const n = array.shape.length,
      i = n > 1 ? cell[n - 2] : 0,
      j = n ? cell[n - 1] : 0;
    mark.style.cssText = `left:${(100 * j) / columns}%;top:${(100 * i) / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
  };
  put(index);
  box.addEventListener("pointermove", (e) => {
    const cell = at(e);
    put(cell);
    $("pointed").textContent = cellWords(v, cell);
  });
  box.addEventListener("pointerleave", () => {
    put(index);
    $("pointed").textContent = cellWords(v, index);
  });
  box.addEventListener("click", (e) => go({ index: at(e) }, true, "picture"));
  box.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (e.key === "Enter") {
      e.preventDefault();
      e.stopPropagation();
      $("why").querySelector("button")?.focus();
    }
    if (!step) return;
    e.preventDefault();
    e.stopPropagation();
    const n = array.shape.length,
      i = (n > 1 ? index[n - 2] : 0) + step[0],
      j = (n ? index[n - 1] : 0) + step[1];
    if (i >= 0 && j >= 0 && i < rows && j < columns) go({ index: moved(array, index, i, j) }, false, "picture");
  });
  return box;
}

function moved(array, index, i, j) {
  const next = index.slice(),
    n = array.shape.length;
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
  return el(
    "div",
    { class: "legend", "aria-hidden": "true" },
    el("span", {}, short(-limit, 3)),
    el("i", { class: "ramp" }),
    el("span", {}, short(limit, 3)),
  );
}

// The meaning of the rows and of the columns of the picture.
function axesWords(v, rows) {
  const axes = axesOf(v),
    words = { B: sampleWord, H: "head", D: "element of a head", C: "channel", R: "row", O: "filter", 1: "one" };
  words.N = axes && axes.includes("S") ? "query token" : "token";
  words.S = "key token";
  words.K = "unit";
  const n = contentOf(v).shape.length;
  if (!n) return null;
  const meaning = (a, plain) => (axes && axes[a] !== "?" ? words[axes[a]] || axes[a] : plain);
  const down = meaning(n - 2, "row"),
    across = meaning(n - 1, rows > 1 || n > 1 ? "column" : "element");
  return el("p", { class: "doc axes" }, rows > 1 ? `↓ ${down}, → ${across}` : `→ ${across}`);
}

// The numbers around the cursor as a table, which a screen reader can read too.
function nearby(array, index) {
  const { rows, columns } = planes(array),
    n = array.shape.length;
  const i0 = n > 1 ? index[n - 2] : 0,
    j0 = n ? index[n - 1] : 0;
  const span = (at, count, size) => {
    const first = Math.max(0, Math.min(at - Math.floor(size / 2), count - size));
    return Array.from({ length: Math.min(size, count) }, (_, k) => first + k);
  };
  const is = span(i0, rows, 5),
    js = span(j0, columns, 5);
  const cell = (i, j) => {
    const at = moved(array, index, i, j),
      x = array.data[ravel(at, array.shape)],
      here = i === i0 && j === j0;
    return el(
      "td",
      { class: here ? "here" : "" },
      el(
        "button",
        {
          class: "number",
          tabindex: here ? "0" : "-1",
          title: exact(x, array.code),
          "aria-label": `${S.a} ${at.join(" ")}: ${short(x, 3)}, exactly ${exact(x, array.code)}`,
          onclick: () => go({ index: at }, true),
        },
        short(x, 3),
      ),
    );
  };
  return table(
    { class: "numbers" },
    ["", ...js],
    is.map((i) => row(i, ...js.map((j) => cell(i, j)))),
  );
}

function tools(v, array) {
  const toggle = (label, on, act) =>
    el("button", { class: "tool", "aria-pressed": on ? "true" : "false", onclick: act }, label);
  return el(
    "p",
    { class: "tools" },
    toggle("log scale", settings.log, () => {
      settings.log = !settings.log;
      draw();
    }),
    toggle("lock scale", settings.locked !== null, () => {
      settings.locked = settings.locked === null ? limitOf(array) : null;
      draw();
    }),
    el("button", { class: "tool", onclick: (e) => copied(e, numpyText(array)) }, "copy as NumPy"),
    el("button", { class: "tool", onclick: (e) => copied(e, pythonText()) }, "copy as Python"),
    el("button", { class: "tool", onclick: (e) => copied(e, location.href) }, "copy link"),
  );
}

function numpyText(array) {
  const dtype = array.dtype === "bfloat16" ? "float32" : array.dtype === "bool" ? "bool_" : array.dtype;
  if (array.size > 20000) return `# ${array.size} elements are too many to copy; get them from the trace in Python`;
  const numbers = Array.from(array.data, (x) =>
    exact(x, array.code).replace("NaN", "np.nan").replace("inf", "np.inf"),
  ).join(", ");
  return `np.array([${numbers}], dtype=np.${dtype}).reshape(${JSON.stringify(array.shape)
    .replace("[", "(")
    .replace("]", array.shape.length === 1 ? ",)" : ")")})`;
}

// Python code for this array; on a page of the study command, it starts with the code that makes the trace.
function pythonText() {
  const first = T.about.python ? T.about.python + "\n" : "";
  return first + expressionOf();
}

function expressionOf() {
  const o = T.ops[S.op],
    a = arrayByLabel(S.op, S.dir, S.a),
    at = S.index ? `[${S.index.join(", ")}]` : "";
  const refs = S.dir
    ? [
        ["incoming", o.din],
        ["outgoing", o.dout],
      ]
    : [
        ["inputs", o.in],
        ["outputs", o.out],
      ];
  for (const [part, list] of refs) {
    const i = list.findIndex((x) => x && x.v === a.v);
    if (i >= 0) return `trace[${JSON.stringify(o.key)}]${S.dir ? ".backward" : ""}.${part}[${i}].array${at}`;
  }
  return `trace[${JSON.stringify(o.key)}]${S.dir ? ".backward" : ""}.narration().steps[${a.k}].value${at}`;
}

async function copied(event, text) {
  const button = event.target,
    before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    prompt("Copy this:", text);
  }
  setTimeout(() => (button.textContent = before), 1200);
}
