// Pictures, Float32Array of 128 x 128 grey levels in [0, 1]: read, drawn, painted on. Nothing here knows the page.

"use strict";

const SIZE = SIDE_PX ** 2;
const GREYS = paletteOf((v) => [v, v, v]);
const MAGMA = magma("0000030a07221c1046350f6a50127b691c808225819c2e7fb63679ce4070e55063f4685bfb8660fda470fec286fddfa1fbfcbf");

function paletteOf(rgb) {
  return Uint32Array.from({ length: 256 }, (_, v) => rgb(v).reduce((word, c, k) => word | (c << (8 * k)), 255 << 24));
}

// Matplotlib's magma from 17 of its colours; linear between them it is within three of 255 levels.
function magma(hex) {
  const stops = hex.match(/../g).map((c) => parseInt(c, 16));
  return paletteOf((v) => {
    const at = Math.min(15, Math.floor((v * 16) / 255));
    const part = (v * 16) / 255 - at;
    return [0, 1, 2].map((k) => Math.round(stops[3 * at + k] * (1 - part) + stops[3 * at + 3 + k] * part));
  });
}

const level = (value) => (value <= 0 ? 0 : value >= 1 ? 255 : (value * 255 + 0.5) | 0);

// `value` gives pixel i's brightness in [0, 1].
function put(canvas, palette, value, width = SIDE_PX, height = SIDE_PX) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const picture = new ImageData(width, height);
  const words = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = palette[level(value(i))];
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// The middle square of anything that can be drawn, its side 128 pixels, in grey.
function greysOf(source) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE_PX, height: SIDE_PX });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const square = Math.min(source.width, source.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (source.width - square) / 2, (source.height - square) / 2, square, square, 0, 0, SIDE_PX, SIDE_PX);
  const { data } = context.getImageData(0, 0, SIDE_PX, SIDE_PX);
  const grey = (i) => Math.round(0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2]) / 255;
  return Float32Array.from({ length: SIZE }, (_, i) => grey(4 * i));
}

async function decoded(url) {
  if (!url) return null;
  const image = Object.assign(new Image(), { src: url });
  await image.decode();
  return greysOf(image);
}

// Between pixels of the mask and others, as an SVG path.
function border(mask) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < SIDE_PX && y < SIDE_PX && mask[y * SIDE_PX + x] > 0.5;
  let path = "";
  for (let y = 0; y <= SIDE_PX; y++)
    for (let x = 0; x <= SIDE_PX; x++) {
      if (inside(x, y) !== inside(x, y - 1)) path += `M${x} ${y}h1`;
      if (inside(x, y) !== inside(x - 1, y)) path += `M${x} ${y}v1`;
    }
  return path;
}

const decibels = (error) => (error ? (-10 * Math.log10(error)).toFixed(1) : "∞");

// PSNR inside and outside, as text; `inside` tells of pixel i.
function closeness(picture, truth, inside) {
  const [sums, counts] = [[0, 0], [0, 0]];
  for (let i = 0; picture && i < SIZE; i++) {
    const place = inside(i) ? 0 : 1;
    sums[place] += (picture[i] - truth[i]) ** 2;
    counts[place]++;
  }
  return sums.map((sum, place) => (counts[place] ? decibels(sum / counts[place]) : "–"));
}

// The energy and its two terms over the states of a run, as SVG, 400 x 120.
function curves(path, top) {
  const line = (kind, value) => {
    const points = path.map(({ terms }, t) => [(400 * t) / Math.max(1, path.length - 1), 120 - (116 * value(terms)) / top]);
    return `<polyline class="${kind}" points="${points.map((point) => point.map((v) => v.toFixed(1))).join(" ")}"/>`;
  };
  return line("reconstruction", ([r]) => r) + line("distance", ([, d]) => d) + line("total", ([r, d]) => r + d);
}

// The same of one state, as HTML; an ellipsis before anything is computed.
function termsIn(words, terms) {
  const values = terms ? [terms[0] + terms[1], ...terms].map((value) => value.toFixed(2)) : ["…", "…", "…"];
  const named = (kind, k) => `<b class="${kind}">${words.terms[k]} ${values[k]}</b>`;
  const [total, reconstruction, distance] = ["total", "reconstruction", "distance"].map(named);
  return `${total} = ${reconstruction} + ${distance} (${words.unit})`;
}

// ---- Painting: a stroke on its way is {stroke, under: the picture before it, covered: how much of each pixel it covers} ----

const strokeOn = (picture, stroke) => ({ stroke, under: picture.slice(), covered: new Float32Array(SIZE) });

// The segment from a to b joins what the stroke covers, a disc's edge fading over one pixel; `base` comes out where it erases.
function cover(picture, base, { stroke, under, covered }, a, b) {
  const shade = SHADES[stroke.ink];
  const reach = stroke.radius + 1;
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const low = (k) => Math.max(0, Math.floor(Math.min(a[k], b[k]) - reach));
  const high = (k) => Math.min(SIDE_PX, Math.ceil(Math.max(a[k], b[k]) + reach));
  const [left, right, top, bottom] = [low(0), high(0), low(1), high(1)];
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++) {
      const [px, py] = [x + 0.5 - a[0], y + 0.5 - a[1]];
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / (dx * dx + dy * dy || 1)));
      const part = Math.min(1, Math.max(0, stroke.radius + 0.5 - Math.hypot(px - along * dx, py - along * dy)));
      const i = y * SIDE_PX + x;
      covered[i] = Math.max(covered[i], part);
      picture[i] = under[i] + covered[i] * ((shade ?? base[i]) - under[i]);
    }
}

// The base with all strokes on it.
function painted(base, strokes) {
  const picture = base.slice();
  for (const stroke of strokes) {
    const begun = strokeOn(picture, stroke);
    stroke.points.forEach((point, k) => cover(picture, base, begun, stroke.points[Math.max(0, k - 1)], point));
  }
  return picture;
}
