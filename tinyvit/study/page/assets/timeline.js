// The forward pass from left to right, and the backward pass below it: each gradient rule is under its operation.

function buildTimeline() {
  const track = $("track"),
    slowest = Math.max(...T.ops.map((o) => Math.max(o.ms[0], o.ms[1] || 0)));
  const norms = T.ops.map((o) =>
    Math.max(1e-30, ...o.dout.filter((x) => x && x.v !== undefined).map((x) => contentOf(x.v).norm)),
  );
  const finite = norms.filter((n) => n > 1e-30 && n < Infinity),
    low = Math.log(Math.min(...finite)),
    high = Math.log(Math.max(...finite));
  track.style.setProperty("--n", T.ops.length);
  T.groups.forEach((group) => {
    track.append(
      el(
        "div",
        { class: "group", style: `grid-column:${group.ops[0] + 1}/span ${group.ops.length}`, title: group.title },
        group.short,
      ),
    );
  });
  for (const dir of [0, 1])
    T.ops.forEach((op, i) => {
      const ms = op.ms[dir];
      if (ms === null) return;
      const size = 24 + 76 * Math.max(0, 1 + Math.log10(ms / slowest) / 3);
      const share = high > low ? (Math.log(norms[i]) - low) / (high - low) : 1; // NaN if the norm is NaN
      const tint = dir ? Math.round(20 + 80 * (share >= 0 ? Math.min(1, share) : 0)) : 0;
      const verdict = dir && op.check && !isSecret() ? op.check.verdict : "";
      const where = `${dir ? "backward of " : ""}${op.key}`;
      const cell = el(
        "button",
        {
          class: `cell ${dir ? "back" : "forth"} ${verdict}`,
          id: `cell-${i}-${dir}`,
          tabindex: "-1",
          style: `grid-column:${i + 1};--size:${size}%;--tint:${tint}%`,
          "aria-label": `${where}${verdict ? `, check: ${verdict}` : ""}`,
          title: `${where} · ${ms.toFixed(3)} ms`,
          onclick: () => go({ op: i, dir, a: null, index: null }, true),
        },
        el("span", {}),
      );
      track.append(cell);
    });
}

function lightTimeline() {
  for (const group of document.querySelectorAll("#track .group")) group.classList.toggle("cut", group.scrollWidth > group.clientWidth);
  document.querySelectorAll("#track .cell[aria-current]").forEach((c) => {
    c.removeAttribute("aria-current");
    c.tabIndex = -1;
  });
  const cell = $(`cell-${S.op}-${S.dir}`);
  if (!cell) return;
  cell.setAttribute("aria-current", "step");
  cell.tabIndex = 0;
  const box = $("track-box"),
    left = cell.offsetLeft - box.clientWidth / 2;
  if (cell.offsetLeft < box.scrollLeft || cell.offsetLeft > box.scrollLeft + box.clientWidth - 30)
    box.scrollLeft = left;
  const at = moments.findIndex((m) => m.op === S.op && m.dir === S.dir);
  $("scrubber").value = at;
  $("where").textContent = `${at + 1} of ${moments.length}`;
}
