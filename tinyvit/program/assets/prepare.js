// From a picture or a drawing to the pixels that the model takes. Nothing here reads the page.
// An image is { width, height, planes }: for each channel an array of numbers 0..255, row by row.
"use strict";

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2); // a = -0.5
// The filters of Pillow by name: how far each reaches, and its weight at a distance.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => (Math.abs(x) < 2 ? cubic(Math.abs(x)) : 0)],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/* For each of `size` new pixels, the old pixels that it is made of: [first, weights]. It shows old pixels from `start`
   to `end`, of `length`; where the image gets smaller, the filter gets wider, so that every old pixel counts. */
function mixture(length, size, filter, start, end) {
  const [reach, weight] = FILTERS[filter];
  const scale = (end - start) / size;
  const wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const last = Math.min(length, Math.trunc(centre + reach * wide + 0.5));
    const weights = Array.from({ length: last - first }, (_, j) => weight((first + j - centre + 0.5) / wide));
    const total = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((w) => w / total)];
  });
}

const asByte = (x) => Math.min(255, Math.max(0, Math.round(x)));

/* Resize the part [left, top, right, bottom] of an image as Pillow does: rows first, then columns, rounded in between. */
function resized(image, width, height, filter = "bilinear", part = [0, 0, image.width, image.height]) {
  const across = mixture(image.width, width, filter, part[0], part[2]);
  const down = mixture(image.height, height, filter, part[1], part[3]);
  const planes = image.planes.map((plane) => {
    const rows = new Float64Array(width * image.height);
    for (let y = 0; y < image.height; y++) {
      for (let x = 0; x < width; x++) {
        const [first, weights] = across[x];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * plane[y * image.width + first + k];
        rows[y * width + x] = asByte(sum);
      }
    }
    const made = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const [first, weights] = down[y];
      for (let x = 0; x < width; x++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[(first + k) * width + x];
        made[y * width + x] = asByte(sum);
      }
    }
    return made;
  });
  return { width, height, planes };
}

/* The image of RGBA bytes, over black, with 1 channel (grey by ITU-R 601) or 3. */
function fromRgba(data, width, height, channels) {
  const planes = Array.from({ length: channels }, () => new Uint8Array(width * height));
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = [0, 1, 2].map((c) => Math.round((data[4 * i + c] * data[4 * i + 3]) / 255));
    if (channels === 1) planes[0][i] = (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16;
    else [planes[0][i], planes[1][i], planes[2][i]] = [r, g, b];
  }
  return { width, height, planes };
}

/* A part of an image from (left, top), black where it reaches beyond. */
function cut(image, left, top, width, height) {
  const planes = image.planes.map((plane) => {
    const made = new Uint8Array(width * height);
    for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++)
      for (let x = Math.max(0, -left); x < Math.min(width, image.width - left); x++)
        made[y * width + x] = plane[(y + top) * image.width + x + left];
    return made;
  });
  return { width, height, planes };
}

/* The half of a whole number, rounded to an even number as Python does. */
const halfOf = (n) => (n % 2 ? 2 * Math.round(n / 4) : n / 2);

/* A picture, by the rule of its data set: { filter, share } of a pretrained model, or else the largest centred part. */
function ofPicture(image, width, height, rule) {
  if (rule) {
    const [toWidth, toHeight] = [width, height].map((n) => Math.floor(n / rule.share));
    const ratio = Math.min(image.width / toWidth, image.height / toHeight);
    const size = [image.width / ratio, image.height / ratio].map((n) => Math.max(1, Math.floor(n + 1e-9)));
    const scaled = rule.squash ? [toWidth, toHeight] : size;
    const whole = resized(image, ...scaled, rule.filter);
    return cut(whole, halfOf(scaled[0] - width), halfOf(scaled[1] - height), width, height);
  }
  if (image.width === width && image.height === height) return image;
  const ratio = Math.min(image.width / width, image.height / height);
  const [left, top] = [(image.width - width * ratio) / 2, (image.height - height * ratio) / 2];
  return resized(image, width, height, "bilinear", [left, top, left + width * ratio, top + height * ratio]);
}

/* [left, top, right, bottom] of what is not black; null if all is. */
function inkOf(image) {
  const box = [image.width, image.height, 0, 0];
  for (const plane of image.planes) {
    plane.forEach((value, i) => {
      if (value < 32) return;
      const [x, y] = [i % image.width, Math.floor(i / image.width)];
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x + 1);
      box[3] = Math.max(box[3], y + 1);
    });
  }
  return box[2] ? box : null;
}

/* Where to place an image, of which `sums` has the ink of each row or column, so that its centre of mass is in the middle. */
function middle(sums, size) {
  const total = sums.reduce((a, b) => a + b, 0);
  const centre = sums.reduce((a, b, i) => a + b * (i + 0.5), 0) / total;
  return Math.round(size / 2 - centre);
}

/* A drawing, by the rule of its data set, see `DRAWINGS` in tinyvit/run/webpage.py; null if it is empty.
   kind "whole" scales all of it. "box" scales the ink to `box` pixels on its longer side and centres it; "mass" does so,
   with the centre of mass in the middle. "rows" gives the ink the full height, and at most `wide` pixels of width.
   With `cells`, every pixel counts how many of so many times so many small squares have ink. */
function ofDrawing(image, width, height, rule) {
  const ink = inkOf(image);
  if (!ink) return null;
  if (rule.kind === "whole") return ofPicture(image, width, height, null);
  const [inkWidth, inkHeight] = [ink[2] - ink[0], ink[3] - ink[1]];
  const cells = rule.cells || 1;
  const isRows = rule.kind === "rows";
  const ratio = ((isRows ? height : rule.box) * cells) / (isRows ? inkHeight : Math.max(inkWidth, inkHeight));
  const size = [inkWidth, inkHeight].map((n) => Math.max(1, Math.round(n * ratio)));
  if (isRows) size[0] = Math.min(size[0], rule.wide * cells);
  const scaled = resized(image, ...size, "bilinear", ink);
  let place = [0, 1].map((axis) => Math.round(((axis ? height : width) * cells - size[axis]) / 2));
  if (rule.kind === "mass") {
    const sums = [new Float64Array(size[0]), new Float64Array(size[1])];
    scaled.planes[0].forEach((v, i) => {
      sums[0][i % size[0]] += v;
      sums[1][Math.floor(i / size[0])] += v;
    });
    place = [middle(sums[0], width), middle(sums[1], height)];
  }
  const whole = cut(scaled, -place[0], -place[1], width * cells, height * cells);
  return cells > 1 ? counted(whole, cells) : whole;
}

/* Each pixel says how many of its small squares have ink, of `cells` on a side. */
function counted(image, cells) {
  const [width, height] = [image.width / cells, image.height / cells];
  const planes = image.planes.map((plane) => {
    const made = new Uint8Array(width * height);
    made.forEach((_, i) => {
      let count = 0;
      for (let y = 0; y < cells; y++)
        for (let x = 0; x < cells; x++)
          count += plane[(Math.floor(i / width) * cells + y) * image.width + (i % width) * cells + x] > 127;
      made[i] = Math.floor((255 * count) / (cells * cells));
    });
    return made;
  });
  return { width, height, planes };
}
