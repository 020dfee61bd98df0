// There is one state, one function that changes it (`go`), and one that shows it (`draw`). The page's address holds the
// whole state.

const moments = [...T.ops.keys()]
  .map((op) => ({ op, dir: 0 }))
  .concat(
    [...T.ops.keys()]
      .reverse()
      .filter((op) => T.ops[op].ms[1] !== null)
      .map((op) => ({ op, dir: 1 })),
  );
const S = { view: "walk", op: 0, dir: 0, a: null, index: null, trail: [], quiz: false, pane: "card", claims: 0, claimed: null, found: false };
let playing = null,
  keysOn = true,
  written = "";

function go(change, remember = false, focus = null) {
  const sameCard =
    (change.op === undefined || change.op === S.op) && (change.dir === undefined || change.dir === S.dir);
  if (change.op !== undefined && change.trail === undefined) S.trail = [];
  if (change.op !== undefined && change.view === undefined) S.view = "walk";
  Object.assign(S, change);
  if (T.ops[S.op].ms[1] === null) S.dir = 0;
  if (!sameCard) showGraph(false);
  if (S.a === null) S.a = firstArray();
  if (!sameCard && !change.a) S.pane = "card";
  if (change.index) S.pane = "array";
  const hash = address();
  if (hash !== written) {
    written = hash;
    history[remember ? "pushState" : "replaceState"](null, "", hash);
  }
  draw(sameCard && change.view === undefined);
  if (focus === "picture") document.querySelector(".picture")?.focus({ preventScroll: true });
  if (focus === "why") $("why")?.scrollIntoView({ block: "nearest" });
}

// The array that is chosen when a card opens: the first gradient of an input, or the first output.
function firstArray() {
  const o = T.ops[S.op],
    ends = outputs(o, S.dir);
  return ends.length ? labelOf(S.op, S.dir, ends[0].v) : null;
}

function address() {
  const q = new URLSearchParams();
  if (S.view !== "walk") q.set("view", S.view);
  q.set("op", T.ops[S.op].key);
  if (S.dir) q.set("dir", "backward");
  if (S.a) q.set("a", S.a);
  if (S.index) q.set("i", S.index.join(","));
  if (S.quiz) q.set("quiz", "1");
  if (S.view === "attention") {
    q.set("show", look.which);
    if (look.query !== null) q.set("query", look.query);
  }
  return "#" + q.toString().replaceAll("%2F", "/").replaceAll("%2C", ",").replaceAll("%23", "%23");
}

// The operation that a link names, or else the first operation of the nearest submodule.
function placeOf(key) {
  const exact = T.ops.findIndex((o) => o.key === key);
  if (exact >= 0) return { op: exact, notice: "" };
  for (let name = key; name; name = name.slice(0, Math.max(0, name.search(/[./#][^./#]*$/)))) {
    const op = T.ops.findIndex((o) => o.key.startsWith(name) && !/^[\w]/.test(o.key.slice(name.length)));
    if (op >= 0)
      return { op, notice: name === key ? "" : `There is no ${key} on this page. It shows ${T.ops[op].key}, which is part of ${name}.` };
  }
  return { op: 0, notice: `There is no ${key} on this page. It shows the first operation, ${T.ops[0].key}.` };
}

// Links have names, not numbers, so they still work after another run. The page says so if it does not know a name.
function fromAddress() {
  const q = new URLSearchParams(location.hash.slice(1));
  const place = q.has("op") ? placeOf(q.get("op")) : { op: moments[0].op, notice: "" },
    notices = [place.notice],
    op = place.op;
  const begin = T.tour.length && !location.hash ? "start" : "walk";
  const view = q.get("view") || begin;
  if (!(view in VIEWS)) notices.push(`There is no view ${view}.`);
  Object.assign(S, {
    view: view in VIEWS ? view : "walk",
    op,
    dir: T.ops[op].ms[1] === null || q.get("dir") !== "backward" ? 0 : 1,
    quiz: q.get("quiz") === "1",
    a: q.get("a"),
    index: null,
    trail: [],
    pane: q.get("i") ? "array" : "card",
  });
  lookAt(q.get("show"), q.get("query"));
  const array = S.a && arrayByLabel(S.op, S.dir, S.a);
  if (!array) {
    if (S.a) notices.push(`There is no array ${S.a} in ${T.ops[op].key}.`);
    S.a = firstArray();
  } else if (q.get("i")) {
    const index = q.get("i").split(",").map(Number),
      shape = contentOf(array.v).shape;
    if (index.length === shape.length && index.every((i, a) => Number.isInteger(i) && i >= 0 && i < shape[a]))
      S.index = index;
    else notices.push(`[${q.get("i")}] is not in ${S.a}, whose shape is ${shapeText(shape)}.`);
  }
  const notice = notices.filter(Boolean).join(" ");
  if (notice) history.replaceState(null, "", address()); // the address must match what is shown
  written = location.hash;
  draw();
  tell(notice);
}

function draw(keepScroll = false) {
  document.body.dataset.view = S.view;
  document.body.dataset.pane = S.pane;
  document.body.dataset.secret = isSecret() ? "yes" : "no";
  document.querySelectorAll("#panes button").forEach((b) => {
    b.setAttribute("aria-selected", b.dataset.pane === S.pane ? "true" : "false");
    if (b.dataset.pane === "array") b.textContent = S.a ? `array ${S.a}` : "array";
  });
  document
    .querySelectorAll("#tabs [role=tab]")
    .forEach((b) => b.setAttribute("aria-selected", b.dataset.view === S.view ? "true" : "false"));
  if (S.view === "walk") {
    const top = $("card").scrollTop;
    lightTimeline();
    buildGraph();
    buildCard();
    buildInspector();
    $("card").scrollTop = keepScroll ? top : 0;
    announce(spoken());
  } else buildView();
}

function spoken() {
  const o = T.ops[S.op],
    at = moments.findIndex((m) => m.op === S.op && m.dir === S.dir) + 1,
    v = current();
  const array = v === null ? "" : `, ${S.a}, ${shapeText(contentOf(v).shape)}`;
  return `Step ${at} of ${moments.length}: ${o.module || ""} ${titleOf(o)} ${S.dir ? "backward" : "forward"}${array}${S.dir && o.check && !isSecret() ? `, check ${o.check.verdict}` : ""}`;
}

// In an exercise, no part of the page shows a verdict until the reader has found the wrong rule, or has given up. The page
// of a homework has no verdicts.
const isHomework = () => T.about.homework !== undefined;
const isExercise = () => Boolean(T.about.exercise) || isHomework();
const isSecret = () => isExercise() && !S.revealed;
function reveal() {
  S.revealed = true;
  $("track").replaceChildren();
  buildTimeline();
  draw(true);
}

const announce = (text) => ($("live").textContent = text);
function tell(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Stepping -----------------------------------------------------------------------------------------------------------

const position = () => moments.findIndex((m) => m.op === S.op && m.dir === S.dir);
function move(by) {
  const at = Math.max(0, Math.min(moments.length - 1, position() + by));
  if (at === position()) return at; // at either end, the current card stays as it is
  go({ ...moments[at], a: null, index: null });
  return at;
}
const jump = (at) => go({ ...moments[Math.max(0, Math.min(moments.length - 1, at))], a: null, index: null }, true);

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else {
    if (position() === moments.length - 1) jump(0);
    playing = setInterval(() => {
      if (move(1) === moments.length - 1) play();
    }, 1100);
  }
  $("play")
    .querySelector("path")
    .setAttribute("d", playing ? "M7.5 6.5v7M12.5 6.5v7" : "M8 6.5l5.5 3.5L8 13.5z");
  $("play").setAttribute("aria-label", playing ? "pause" : "play");
}

function along(by) {
  const list = cardArrays(S.op, S.dir).filter((a) => a.role !== "part"),
    at = list.findIndex((a) => a.label === S.a);
  const next = list[Math.max(0, Math.min(list.length - 1, at + by))];
  if (!next) return;
  go({ a: next.label, index: null });
  document.querySelector("#card .array.chosen")?.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  ArrowRight: () => move(1),
  ArrowLeft: () => move(-1),
  ArrowDown: () => along(1),
  ArrowUp: () => along(-1),
  Home: () => jump(0),
  End: () => jump(moments.length - 1),
  " ": play,
  b: () => go({ dir: 1 - S.dir, a: null, index: null }, true),
  l: () => jump(T.ops.length - 1),
  "/": () => $("search").focus(),
  "?": () => go({ view: "about" }, true),
  t: theme,
  Enter: () => document.querySelector(".picture")?.focus(),
  Escape: escape,
};

function escape() {
  if (document.body.dataset.graph === "open") return showGraph(false);
  if (S.view !== "walk") return go({ view: "walk" }, true);
  if (S.trail.length) return goBack();
  if (S.index) return go({ index: null }, true);
  document.activeElement?.blur();
}

addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || !keysOn) return;
  if (e.target.closest("input, select, textarea")) {
    if (e.key === "Escape") e.target.blur();
    return;
  }
  if ((e.key === "Enter" || e.key === " ") && e.target.closest("button, summary, a")) return;
  if (e.key.startsWith("Arrow") && e.target.closest(".scroll[tabindex], .formula")) return;
  const act = Object.hasOwn(KEYS, e.key) && (S.view === "walk" || !e.key.startsWith("Arrow")) ? KEYS[e.key] : null;
  if (!act) return;
  e.preventDefault();
  act();
});

// On a narrow screen, the button `model` shows the graph of the model over the card.
function showGraph(shown) {
  document.body.dataset.graph = shown ? "open" : "closed";
  $("model").setAttribute("aria-expanded", shown ? "true" : "false");
  if (shown) $("graph").querySelector(".node")?.focus();
}

function theme() {
  document.documentElement.dataset.theme = matchesDark() ? "light" : "dark";
  palette = null;
  draw(true);
}

// Search -------------------------------------------------------------------------------------------------------------

function matches(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return moments.filter(({ op, dir }) => {
    const o = T.ops[op],
      kind = T.kinds[o.op];
    const hay =
      `${o.key} ${o.op.replaceAll("_", " ")} ${dir ? "backward bwd" : "forward fwd"} ${kind.t} ${kind.u} ${(o.check && dir && !isSecret() && o.check.verdict) || ""} ${o.out.map((x) => (x && x.v !== undefined ? contentOf(x.v).shape.join("x") : "")).join(" ")}`.toLowerCase();
    return words.every((w) => hay.includes(w));
  });
}

function search() {
  const text = $("search").value,
    list = text ? matches(text).slice(0, 12) : [];
  $("found").replaceChildren(
    ...list.map(({ op, dir }) =>
      el(
        "li",
        {},
        el(
          "button",
          {
            onclick: () => {
              $("search").value = "";
              search();
              $("search").blur();
              go({ op, dir, a: null, index: null }, true);
            },
          },
          T.ops[op].key,
          " ",
          el("small", {}, dir ? "backward" : "forward"),
        ),
      ),
    ),
  );
  $("found").hidden = !text;
  if (text && !list.length) $("found").replaceChildren(el("li", { class: "hint" }, "no match"));
}

// Start --------------------------------------------------------------------------------------------------------------

async function begin() {
  makePalette();
  try {
    await Promise.all(T.blobs.map(unpack));
  } catch (error) {
    tell("The numbers of this page are damaged: their checksum does not match. Write the page again with `tinyvit study`.");
    return;
  }
  buildTimeline();
  $("scrubber").max = moments.length - 1;
  $("scrubber").addEventListener("input", (e) => go({ ...moments[Number(e.target.value)], a: null, index: null }));
  $("first").addEventListener("click", () => jump(0));
  $("previous").addEventListener("click", () => move(-1));
  $("play").addEventListener("click", play);
  $("next").addEventListener("click", () => move(1));
  $("last").addEventListener("click", () => jump(moments.length - 1));
  $("flip").addEventListener("click", KEYS.b);
  $("loss").addEventListener("click", KEYS.l);
  $("model").addEventListener("click", () => showGraph(document.body.dataset.graph !== "open"));
  $("theme").addEventListener("click", theme);
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (e) => {
    if (e.key === "Enter") $("found").querySelector("button")?.click();
  });
  for (const [view, content] of Object.entries({ start: T.tour, attention: T.attention, fused: T.fused, quiz: T.quiz }))
    document.querySelector(`#tabs [data-view=${view}]`).hidden = !content.length;
  document
    .querySelectorAll("#tabs [role=tab]")
    .forEach((b) => b.addEventListener("click", () => go({ view: b.dataset.view }, true)));
  document.querySelectorAll("#panes button").forEach((b) =>
    b.addEventListener("click", () => {
      go({ pane: b.dataset.pane });
      scrollTo(0, 0);
    }),
  );
  for (const event of ["hashchange", "popstate"]) // following a link triggers both
    addEventListener(event, () => location.hash !== written && fromAddress());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    palette = null;
    draw(true);
  });
  let start = null;
  $("main").addEventListener(
    "touchstart",
    (e) => {
      start = e.target.closest(".picture, .scroll, input") ? null : e.touches[0];
    },
    { passive: true },
  );
  $("main").addEventListener("touchend", (e) => {
    if (!start || S.view !== "walk") return;
    const dx = e.changedTouches[0].clientX - start.clientX,
      dy = e.changedTouches[0].clientY - start.clientY;
    if (Math.abs(dx) > 70 && Math.abs(dx) > 2 * Math.abs(dy)) move(dx < 0 ? 1 : -1);
  });
  fromAddress();
  document.body.dataset.ready = "yes";
}

begin();
