// The kernel with a model in it: unpacks the weights, packs them as kernel.c wants them, starts a descent and steps it.
// Runs in a worker, in a page, in node.

"use strict";

const SIDE = 128;
const SIZE = SIDE * SIDE;
const DESCENTS = ["anchored", "paper", "plain", "article", "composite"]; // the kernel's enum

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const floatsOf = (base64) => new Float32Array(bytesOf(base64).buffer);

// {head: [[name, dtype, shape, offset], ...], data: base64 of gzip} -> [[name, shape, Float32Array], ...] in the head's order.
async function tensorsOf({ head, data }) {
  const unpacked = new Blob([bytesOf(data)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(unpacked).arrayBuffer();
  const raw = new Map();
  for (const [name, dtype, shape, offset] of head) {
    const kind = { int8: Int8Array, float32: Float32Array }[dtype];
    raw.set(name, new kind(buffer, offset, shape.reduce((a, b) => a * b, 1)));
  }
  const tensors = [];
  for (const [name, , shape] of head) {
    if (name.endsWith(".scale")) continue;
    const values = Float32Array.from(raw.get(name));
    const scale = raw.get(`${name}.scale`); // of int8 alone: the size of its unit, row by row
    if (scale) {
      const row = values.length / scale.length;
      for (let i = 0; i < values.length; i++) values[i] *= scale[Math.floor(i / row)];
    }
    tensors.push([name, shape, values]);
  }
  return tensors;
}

// Weights [coarse N, fine C, 4, 4], of a convolution and of a transposed one alike, as the kernel reads them on the way down:
// [N / 8][rows and columns of the kernel, C][8].
function packDown([N, C], w) {
  const packed = new Float32Array(w.length);
  for (let n = 0; n < N; n++)
    for (let c = 0; c < C; c++)
      for (let k = 0; k < 16; k++) packed[((n >> 3) * 16 * C + k * C + c) * 8 + (n & 7)] = w[(n * C + c) * 16 + k];
  return packed;
}

// And on the way up: a pixel of each of the four phases (even or odd row and column) sees 2 x 2 pixels of the coarse level.
function packUp([N, C], w) {
  const packed = new Float32Array(w.length);
  const group = Math.min(8, C);
  for (let phase = 0; phase < 4; phase++)
    for (let tap = 0; tap < 4; tap++) {
      const [y, x] = [3 - (phase >> 1) - 2 * (tap >> 1), 3 - (phase & 1) - 2 * (tap & 1)];
      for (let n = 0; n < N; n++)
        for (let c = 0; c < C; c++) {
          const row = phase * N * C * 4 + (Math.floor(c / group) * 4 * N + tap * N + n) * group;
          packed[row + (c % group)] = w[((n * C + c) * 4 + y) * 4 + x];
        }
    }
  return packed;
}

async function createEngine(wasm, model, expected) {
  const { instance } = await WebAssembly.instantiate(wasm, {});
  const kernel = instance.exports;
  const { buffer } = kernel.memory;
  const view = (name, length, kind = Float32Array) => new kind(buffer, kernel[name].value, length);

  const tensors = await tensorsOf(model);
  const weights = tensors.filter(([name]) => name.endsWith("weight"));
  const biases = tensors.filter(([name]) => name.endsWith("bias"));
  const [encoder, dense, decoder] = [weights.slice(0, 4), weights.slice(4, 8), weights.slice(8).reverse()]; // fine to coarse
  const parts = [
    ...[encoder, decoder].flatMap((way) => [packDown, packUp].flatMap((pack) => way.map(([, shape, w]) => pack(shape, w)))),
    ...[...dense, ...biases].map(([, , values]) => values),
  ];
  let at = kernel.weights.value;
  for (const part of parts) {
    new Float32Array(buffer, at, part.length).set(part);
    at += part.byteLength;
  }
  view("expected", 7).set(expected);
  kernel.prepare();

  const [x, x0, f, weight, gradient] = ["x", "x_0", "f", "weight", "gradient"].map((name) => view(name, SIZE));
  const [alpha, terms] = [view("alpha", 1), view("terms", 2, Float64Array)];
  return {
    x, f, weight, gradient, terms, // views of the kernel's memory: copy what is to stay
    get alpha() {
      return alpha[0];
    },
    // The state before the first step from the image x0, or from a picture on its way.
    start(image, settings, picture = image) {
      x0.set(image);
      x.set(picture);
      alpha[0] = settings.alpha;
      const { descent, gradient: through, lam, tolerance, hardness, coarse_weight: coarse } = settings;
      kernel.start(DESCENTS.indexOf(descent), through === "full", lam, tolerance, hardness, coarse);
    },
    // False: the step raised the energy and was taken back.
    step: () => kernel.step() === 1,
  };
}

if (typeof module !== "undefined") module.exports = { createEngine, tensorsOf, floatsOf, bytesOf };
