// The page: runs the model whenever the drawing changes, and shows what it says and where its heads look.
"use strict";

const BARS = 10; // classes that are shown where there are more
const AMBER = [255, 170, 40]; // of attention
let result = null; // of the last run, with its image
let patch = null; // whose attention is shown, or null for the mean
let waiting = false;
let saying = 0; // the timer of the announcement

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Run the model at the next frame; a slow model waits for the end of a stroke. */
function runSoon(isDrawing) {
  if (waiting || (isDrawing && result && result.ms > 80)) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
  });
}

function update() {
  const image = currentImage();
  const before = result;
  result = image ? { ...run(image), image } : null;
  if (result && before === null) patch = null;
  showVerdict();
  showBars();
  showSeen();
  showMaps();
  $("time").textContent = result ? `The last run took ${Math.max(1, Math.round(result.ms))} ms.` : "";
  document.querySelectorAll("#examples button").forEach((button) => {
    button.setAttribute("aria-pressed", String(Boolean(shown) && button.dataset.name === shown.name));
  });
}

function showVerdict() {
  const place = $("verdict");
  clearTimeout(saying);
  if (!result) {
    place.textContent = about.empty;
    $("badge").textContent = "";
    return;
  }
  const best = result.shares.indexOf(Math.max(...result.shares));
  const strong = element("strong", "", about.classes[best]);
  $("badge").textContent = `${about.classes[best]} · ${percent(result.shares[best])}`;
  const text = `with a probability of ${percent(result.shares[best])}. ${shown && shown.label ? shown.label : ""}`;
  // Readers of a screen are told once the drawing rests.
  place.setAttribute("aria-busy", "true");
  place.replaceChildren(strong, document.createTextNode(text));
  saying = setTimeout(() => place.setAttribute("aria-busy", "false"), 600);
}

function showBars() {
  const order = about.classes.map((_, i) => i);
  if (order.length > BARS + 2 && result) order.sort((a, b) => result.shares[b] - result.shares[a]);
  const chosen = order.slice(0, order.length > BARS + 2 ? BARS : undefined);
  const best = result ? result.shares.indexOf(Math.max(...result.shares)) : -1;
  const list = $("bars");
  while (list.children.length < chosen.length) {
    const row = element("li");
    row.append(element("span", "name"), element("div", "track"), element("span", "share"));
    row.children[1].append(element("div", "bar"));
    list.append(row);
  }
  chosen.forEach((c, place) => {
    const row = list.children[place];
    const share = result ? result.shares[c] : 0;
    row.classList.toggle("best", c === best);
    row.children[0].textContent = row.children[0].title = about.classes[c];
    row.children[1].firstChild.style.width = `${100 * share}%`;
    row.children[2].textContent = result ? percent(share) : "–";
  });
}

/* Fill a canvas with an image, light where `weights` of its patches are large; null shows the image alone. */
function paintPatches(canvas, image, weights) {
  const [rows, columns] = about.grid;
  const factor = Math.max(1, Math.round(96 / Math.max(about.width, about.height)));
  [canvas.width, canvas.height] = [about.width * factor, about.height * factor];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  if (!image) return context;
  context.globalAlpha = weights ? 0.55 : 1;
  context.drawImage(canvasOf(image), 0, 0, canvas.width, canvas.height);
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const most = weights ? Math.max(...weights) || 1 : 1;
  (weights || []).forEach((weight, i) => {
    context.globalAlpha = 0.8 * (weight / most);
    context.fillStyle = `rgb(${AMBER})`;
    context.fillRect((i % columns) * w, Math.floor(i / columns) * h, w, h);
  });
  context.globalAlpha = 1;
  return context;
}

function markPatch(context, canvas) {
  if (patch === null) return;
  const [w, h] = [canvas.width / about.grid[1], canvas.height / about.grid[0]];
  const line = Math.max(2, canvas.width / 48);
  context.lineWidth = line;
  context.strokeStyle = "#ff4d6d";
  context.strokeRect((patch % about.grid[1]) * w + line / 2, Math.floor(patch / about.grid[1]) * h + line / 2, w - line, h - line);
}

const nameOf = (i) => `row ${Math.floor(i / about.grid[1]) + 1}, column ${(i % about.grid[1]) + 1}`;

function showSeen() {
  const canvas = $("seen");
  markPatch(paintPatches(canvas, result && result.image, null), canvas);
  const chosen = patch === null ? "none is chosen" : `chosen: ${nameOf(patch)}`;
  const how = `arrow keys choose a patch, Escape shows all again; ${chosen}`;
  canvas.setAttribute("aria-label", about.maps.length ? `The image that the model sees; ${how}` : "The image that the model sees");
}

function showMaps() {
  if (!about.maps.length) return;
  $("reader-text").textContent =
    patch === null ? about.reader : `Shown is the attention of the patch in ${nameOf(patch)}, which is framed.`;
  $("release").hidden = patch === null;
  document.querySelectorAll("#maps canvas").forEach((canvas) => {
    const [block, head] = [Number(canvas.dataset.block), Number(canvas.dataset.head)];
    const weights = result ? attentionOf(result.maps[block], about.maps[block], head, patch) : null;
    markPatch(paintPatches(canvas, result && result.image, weights), canvas);
    let text = `Block ${block + 1}, head ${head + 1}`;
    if (weights) {
      const most = weights.indexOf(Math.max(...weights));
      text += `: most, ${percent(weights[most])}, to ${nameOf(most)}`;
    }
    canvas.setAttribute("aria-label", text);
    canvas.title = text;
  });
}

function setUpMaps() {
  $("attention").hidden = !about.maps.length;
  about.maps.forEach(({ heads }, block) => {
    const row = element("div", "block");
    const list = element("div", "heads");
    for (let head = 0; head < heads; head++) {
      const figure = element("figure");
      const canvas = element("canvas");
      Object.assign(canvas.dataset, { block, head });
      canvas.setAttribute("role", "img");
      figure.append(canvas, element("figcaption", "", `head ${head + 1}`));
      list.append(figure);
    }
    row.append(element("h3", "", `Block ${block + 1}`), list);
    $("maps").append(row);
  });
}

function choosePatch(chosen) {
  patch = chosen;
  showSeen();
  showMaps();
}

function setUpPatches() {
  if (!about.maps.length) return;
  const [rows, columns] = about.grid;
  const at = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
  };
  const click = (event) => choosePatch(at(event) === patch ? null : at(event));
  $("seen").addEventListener("click", click);
  $("maps").addEventListener("click", (event) => {
    if (event.target.tagName === "CANVAS") click({ ...copy(event), currentTarget: event.target });
  });
  $("seen").addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choosePatch(null);
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = patch === null ? [0, 0] : [Math.floor(patch / columns) + move[1], (patch % columns) + move[0]];
    choosePatch(((row + rows) % rows) * columns + ((column + columns) % columns));
  });
  $("release").addEventListener("click", () => choosePatch(null));
}

const copy = ({ clientX, clientY }) => ({ clientX, clientY });

function setUpExamples() {
  $("examples-box").hidden = !about.examples.length;
  about.examples.forEach((example) => {
    const button = element("button");
    button.type = "button";
    button.dataset.name = example.name;
    button.setAttribute("aria-label", `${example.name}: ${about.classes[example.label]}`);
    button.title = button.getAttribute("aria-label");
    button.append(canvasOf(exampleImage(example)));
    button.addEventListener("click", () => {
      const label = `Its label in the test set is ${about.classes[example.label]}.`;
      setShown({ image: exampleImage(example), name: example.name, label });
    });
    $("examples").append(button);
  });
}

function setUpTheme() {
  const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  });
}

function warn(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
}

async function start() {
  setUpTheme();
  setUpBoard();
  setUpMaps();
  setUpPatches();
  setUpExamples();
  const widest = Math.max(...about.classes.map((name) => name.length));
  $("bars").style.setProperty("--names", `min(${Math.max(1.2, 0.62 * widest + 0.3)}em, 38%)`);
  try {
    await startModel();
    const apart = difference();
    if (!(apart <= about.tolerance)) {
      warn(`In this browser the model gives other numbers than where it was exported: they differ by ${apart.toExponential(1)} of the largest.`);
    }
    whenChanged = runSoon;
    redraw();
    update();
    document.body.dataset.ready = "yes";
  } catch (error) {
    warn(`The model cannot be started in this browser, which needs WebAssembly: ${error.message}`);
  }
}

start();
