// The model: WebAssembly that was compiled from exported C, and what its numbers mean.
"use strict";

const about = JSON.parse(document.getElementById("about").textContent);
let machine = null;

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function startModel() {
  const code = bytesOf(document.getElementById("wasm").textContent.trim());
  machine = (await WebAssembly.instantiate(code, {})).instance.exports;
}

const numbersAt = (name, count) => new Float32Array(machine.memory.buffer, machine[name].value, count);

/* Run the model on an image. Returns { logits, shares, maps, ms }; shares are the probabilities of the classes. */
function run(image) {
  const size = about.width * about.height;
  const given = numbersAt(about.input, size * about.channels);
  const start = performance.now();
  image.planes.forEach((plane, c) => {
    for (let i = 0; i < size; i++) given[c * size + i] = Math.fround(plane[i] * about.scale[c]) - about.offset[c];
  });
  if (machine.run() !== 0) throw new Error("the model refused its input");
  const logits = numbersAt(about.outputs[0], about.classes.length).slice();
  const maps = about.maps.map(({ heads, tokens }, i) =>
    numbersAt(about.outputs[i + 1], heads * tokens * tokens).slice(),
  );
  const ms = performance.now() - start;
  const peak = Math.max(...logits);
  const powers = Array.from(logits, (x) => Math.exp(x - peak));
  const total = powers.reduce((a, b) => a + b, 0);
  return { logits, shares: powers.map((p) => p / total), maps, ms };
}

/* An image of the test split that came with the page. */
function exampleImage(example) {
  const [bytes, size] = [bytesOf(example.pixels), about.width * about.height];
  const planes = Array.from({ length: about.channels }, (_, c) => bytes.slice(c * size, (c + 1) * size));
  return { width: about.width, height: about.height, planes };
}

/* The largest difference between what the model computes here and what it computed where it was exported, relative to
   the largest logit. */
function difference() {
  let worst = 0;
  for (const example of about.checks) {
    const { logits } = run(exampleImage(example));
    const scale = Math.max(...example.logits.map(Math.abs)) || 1;
    logits.forEach((x, i) => {
      const apart = Math.abs(x - example.logits[i]) / scale;
      worst = apart <= worst ? worst : apart; // NaN is worse than any number
    });
  }
  return worst;
}

/* How much of the attention of one head goes to each patch, from one patch, or as a mean from where the class is read. */
function attentionOf(map, { tokens }, head, patch) {
  const patches = about.grid[0] * about.grid[1];
  const rows = patch === null ? about.reads : [about.prefix + patch];
  const found = new Float64Array(patches);
  for (const row of rows)
    for (let i = 0; i < patches; i++)
      found[i] += map[(head * tokens + row) * tokens + about.prefix + i] / rows.length;
  return found;
}
