// The model as a column of submodules that open and close. Arcs show the data flow; the longest ones are the residual
// stream.

const open = new Set();

function buildGraph() {
  const nodes = [];
  T.groups.forEach((group, g) => {
    const isOpen = open.has(g) || group.ops.includes(S.op);
    nodes.push({ g, title: group.title, ops: group.ops, header: true, isOpen, single: group.ops.length === 1 });
    if (isOpen && group.ops.length > 1)
      group.ops.forEach((i) => nodes.push({ g, i, title: shortKey(T.ops[i], group), ops: [i] }));
  });
  const height = 30,
    top = 6,
    x = 84,
    width = 214;
  const place = new Map();
  nodes.forEach((node, row) => {
    node.y = top + row * height;
    node.ops.forEach((i) => {
      if (!node.header || !node.isOpen || node.single) place.set(i, row);
    });
  });
  const largest = (side) => Math.max(1e-30, ...T.ops.map((o) => normOf(o, side)).filter(Number.isFinite));
  const most = [largest(0), largest(1)];
  const picture = svg("svg", {
    viewBox: `0 0 ${x + width + 8} ${top + nodes.length * height + 4}`,
    width: "100%",
    role: "group",
    "aria-label": "the model, by submodule",
  });
  picture.append(arrowHeads());
  const drawn = new Set();
  T.edges.forEach(([from, to]) => {
    const a = place.get(from),
      b = place.get(to);
    if (a === undefined || b === undefined || a === b) return;
    const key = `${a}-${b}`,
      live = S.dir ? to === S.op : to === S.op || from === S.op;
    const gone = S.dir && to === S.op;
    if (drawn.has(key) && !live) return;
    drawn.add(key);
    const ya = nodes[a].y + height / 2 - 2,
      yb = nodes[b].y + height / 2 - 2,
      bend = Math.min(76, 10 + 9 * Math.abs(b - a));
    const d =
      b === a + 1
        ? `M ${x + 12} ${ya + 11} L ${x + 12} ${yb - 12}`
        : `M ${x} ${ya + 3} C ${x - bend} ${ya + 3}, ${x - bend} ${yb - 3}, ${x} ${yb - 3}`;
    const flow = gone ? "edge gradient" : live ? "edge live" : "edge";
    picture.append(
      svg("path", {
        d: gone ? reversed(d) : d,
        class: flow,
        "marker-end": gone ? "url(#back)" : live ? "url(#forth)" : "",
      }),
    );
  });
  nodes.forEach((node) => picture.append(drawNode(node, x, width, height, most)));
  $("graph").replaceChildren(picture);
}

function reversed(d) {
  const n = d.match(/-?[\d.]+/g);
  return n.length === 4
    ? `M ${n[2]} ${n[3]} L ${n[0]} ${n[1]}`
    : `M ${n[6]} ${n[7]} C ${n[4]} ${n[5]}, ${n[2]} ${n[3]}, ${n[0]} ${n[1]}`;
}

function arrowHeads() {
  const head = (id) =>
    svg(
      "marker",
      { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      svg("path", { d: "M0 0 L8 4 L0 8 z", class: id }),
    );
  return svg("defs", {}, head("forth"), head("back"));
}

// The norm of an operation's output (side 0), or of the gradient of its input (side 1).
function normOf(op, side) {
  const refs = (side ? op.dout : op.out).filter((x) => x && x.v !== undefined);
  return refs.length ? contentOf(refs[0].v).norm : 0;
}

function drawNode(node, x, width, height, most) {
  const lit = node.ops.includes(S.op) && (!node.header || !node.isOpen || node.single);
  const last = T.ops[node.ops[node.ops.length - 1]];
  const inset = node.header ? 0 : 12;
  const toggles = node.header && !node.single;
  const act = () => {
    if (!toggles) return go({ op: node.ops[0], a: null, index: null }, true);
    if (node.isOpen && !node.ops.includes(S.op)) open.delete(node.g);
    else open.add(node.g);
    if (!node.isOpen)
      return go({ op: S.dir ? node.ops[node.ops.length - 1] : node.ops[0], a: null, index: null }, true);
    buildGraph();
  };
  const label = `${node.title}${toggles ? (node.isOpen ? ", open" : ", closed") : ""}`;
  const g = svg("g", {
    class: `node${node.header ? " part" : ""}${lit ? " lit" : ""}${lit && S.dir ? " back" : ""}`,
    tabindex: "0",
    role: "button",
    "aria-label": label,
    onclick: act,
    onkeydown: (e) => {
      if (e.key === "Enter" || e.key === " ") {
        e.preventDefault();
        e.stopPropagation();
        act();
      }
    },
  });
  g.append(svg("rect", { x: x + inset, y: node.y, width: width - inset, height: height - 6, rx: 6 }));
  const text = svg("text", { x: x + inset + 10, y: node.y + 16 });
  text.textContent = (toggles ? (node.isOpen ? "▾ " : "▸ ") : "") + node.title;
  g.append(text);
  [0, 1].forEach((side) => {
    const norm = normOf(last, side),
      share = !Number.isFinite(norm) ? 1 : norm > 0 ? Math.max(0.04, 1 + Math.log10(norm / most[side]) / 5) : 0;
    g.append(
      svg("rect", {
        class: `bar${side ? " grad" : ""}${Number.isFinite(norm) ? "" : " broken"}`,
        x: x + width - 36,
        y: node.y + 6 + 7 * side,
        width: 30 * Math.max(0, share),
        height: 4,
        rx: 2,
      }),
    );
  });
  return g;
}

function shortKey(op, group) {
  const inside =
    op.module && group.module && op.module.startsWith(group.module)
      ? op.module.slice(group.module.length + 1)
      : op.module || "";
  const number = op.key.includes("#") ? " " + op.key.split("#")[1] : "";
  const own = op.out.length === 1 && op.out[0] && op.out[0].u ? ` → ${op.out[0].u}` : "";
  return `${inside ? inside + " · " : ""}${op.op.replaceAll("_", " ")}${number}${own}`;
}
