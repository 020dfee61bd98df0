// The drawing area: strokes by mouse, finger, pen and keyboard, and pictures that take their place.
"use strict";

const $ = (id) => document.getElementById(id);
const board = $("canvas");
const paint = board.getContext("2d", { willReadFrequently: true });
const strokes = []; // each { colour, points: [[x, y], ...] }
let latest = null; // the stroke that is drawn on; one that was undone meanwhile is not among `strokes`
let shown = null; // in the place of strokes: { image, name } of the model's size, { picture, name } of a file
let whenChanged = () => {};
const pen = { x: 0, y: 0, isDown: false, isSeen: false };

function setUpBoard() {
  const factor = Math.max(1, Math.round(280 / Math.max(about.width, about.height)));
  [board.width, board.height] = [about.width * factor, about.height * factor];
  [pen.x, pen.y] = [board.width / 2, board.height / 2];
  board.setAttribute("aria-label", about.task);
  $("ink-label").hidden = about.channels === 1;
  board.addEventListener("pointerdown", beginStroke);
  board.addEventListener("pointermove", continueStroke);
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, endStroke);
  board.addEventListener("keydown", pressKey);
  board.addEventListener("focus", () => showPen(pen.isSeen));
  board.addEventListener("blur", () => showPen(false));
  $("clear").addEventListener("click", clearBoard);
  $("undo").addEventListener("click", undoStroke);
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => $("file").files[0] && openPicture($("file").files[0]));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) openPicture(event.dataTransfer.files[0]);
  });
}

const width = () => about.drawing.pen * Math.max(board.width, board.height);

function placeOf(event) {
  const box = board.getBoundingClientRect();
  return [((event.clientX - box.left) * board.width) / box.width, ((event.clientY - box.top) * board.height) / box.height];
}

function newStroke(point) {
  if (shown) setShown(null);
  latest = { colour: about.channels === 1 ? "#ffffff" : $("ink").value, points: [point] };
  strokes.push(latest);
  redraw();
}

let pointer = null; // the one that draws; other fingers are ignored

function beginStroke(event) {
  if (pointer !== null || event.button > 0) return;
  event.preventDefault();
  board.focus({ preventScroll: true, focusVisible: false });
  board.setPointerCapture(event.pointerId);
  pointer = event.pointerId;
  liftPen();
  showPen(false);
  newStroke(placeOf(event));
}

function continueStroke(event) {
  if (event.pointerId !== pointer) return;
  const steps = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  latest.points.push(...(steps.length ? steps : [event]).map(placeOf));
  redraw();
}

function endStroke(event) {
  if (event.pointerId !== pointer) return;
  pointer = null;
  redraw();
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function pressKey(event) {
  const move = MOVES[event.key];
  if (move && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const step = Math.max(board.width, board.height) / 40;
    pen.x = Math.min(board.width, Math.max(0, pen.x + move[0] * step));
    pen.y = Math.min(board.height, Math.max(0, pen.y + move[1] * step));
    if (pen.isDown) latest.points.push([pen.x, pen.y]);
  } else if (event.key === " ") {
    pen.isDown = !pen.isDown;
    if (pen.isDown) newStroke([pen.x, pen.y]);
  } else if (event.key === "Delete" || event.key === "Backspace") clearBoard();
  else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) undoStroke();
  else return;
  event.preventDefault();
  showPen(true);
  redraw();
}

function liftPen() {
  pen.isDown = false;
}

function showPen(isSeen) {
  pen.isSeen = isSeen || (pen.isSeen && document.activeElement !== board);
  const mark = $("cursor");
  mark.hidden = !isSeen;
  mark.classList.toggle("down", pen.isDown);
  mark.style.left = `${(100 * pen.x) / board.width}%`;
  mark.style.top = `${(100 * pen.y) / board.height}%`;
  mark.style.width = mark.style.height = `${(width() * board.clientWidth) / board.width}px`;
}

function clearBoard() {
  strokes.length = 0;
  liftPen();
  showPen(pen.isSeen && document.activeElement === board);
  setShown(null);
}

function undoStroke() {
  if (shown) return setShown(null);
  strokes.pop();
  liftPen();
  redraw();
}

/* Show an image in the place of the strokes, or, with null, the strokes again. */
function setShown(image) {
  if (image) {
    strokes.length = 0;
    liftPen();
  }
  shown = image;
  redraw();
}

function redraw() {
  paint.fillStyle = "#000000";
  paint.fillRect(0, 0, board.width, board.height);
  if (shown) paintShown();
  else strokes.forEach(paintStroke);
  const isEmpty = !shown && !strokes.length;
  $("hint").hidden = !isEmpty;
  $("clear").disabled = $("undo").disabled = isEmpty;
  whenChanged(pointer !== null);
}

function paintStroke({ colour, points }) {
  Object.assign(paint, { strokeStyle: colour, fillStyle: colour, lineWidth: width(), lineCap: "round", lineJoin: "round" });
  paint.beginPath();
  paint.moveTo(...points[0]);
  if (points.length === 1) paint.lineTo(points[0][0] + 0.01, points[0][1]);
  for (let i = 1; i < points.length; i++) paint.lineTo(...points[i]);
  paint.stroke();
}

function paintShown() {
  const source = shown.picture || canvasOf(shown.image);
  const [across, down] = [source.width, source.height];
  const ratio = Math.min(across / board.width, down / board.height);
  const [w, h] = [board.width * ratio, board.height * ratio];
  paint.imageSmoothingEnabled = Boolean(shown.picture);
  paint.drawImage(source, (across - w) / 2, (down - h) / 2, w, h, 0, 0, board.width, board.height);
}

/* A canvas with the pixels of an image. */
function canvasOf({ width, height, planes }, canvas = document.createElement("canvas")) {
  [canvas.width, canvas.height] = [width, height];
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) data.data[4 * i + c] = planes[planes.length === 1 ? 0 : c][i];
    data.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

async function openPicture(file) {
  try {
    setShown({ picture: await createImageBitmap(file), name: file.name });
    $("notice").hidden = true;
  } catch {
    $("notice").textContent = `${file.name} cannot be read as a picture. Choose a PNG, a JPEG or a WebP file.`;
    $("notice").hidden = false;
  }
  $("file").value = "";
}

/* The image that the model is to see; null if nothing is drawn. */
function currentImage() {
  if (shown && shown.image) return shown.image;
  if (shown) {
    const { width, height } = shown.picture;
    const canvas = new OffscreenCanvas(width, height).getContext("2d");
    canvas.drawImage(shown.picture, 0, 0);
    const { data } = canvas.getImageData(0, 0, width, height);
    return ofPicture(fromRgba(data, width, height, about.channels), about.width, about.height, about.picture);
  }
  const { data } = paint.getImageData(0, 0, board.width, board.height);
  const drawn = fromRgba(data, board.width, board.height, about.channels);
  return ofDrawing(drawn, about.width, about.height, about.drawing);
}
