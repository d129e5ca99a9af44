// Computes away from the page's own thread: the messages are in README.md. Follows engine.js in the same source text.

let engine = null;
let newest = 0; // run: an older one ends
let last = null; // {x0, x} where the last run stood

const bell = new MessageChannel();
// Lets waiting messages in; a timer would wait four milliseconds.
const giveWay = () =>
  new Promise((resolve) => {
    bell.port1.onmessage = resolve;
    bell.port2.postMessage(null);
  });

const largest = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

// PyTorch's answer for one tile beside the kernel's.
function differences({ x, f, gradient, terms, settings }) {
  engine.start(Float32Array.from(bytesOf(x), (grey) => grey / 255), settings);
  const total = terms[0] + terms[1];
  return {
    picture: largest(engine.f, floatsOf(f)),
    gradient: largest(engine.gradient, floatsOf(gradient)),
    energy: Math.abs(engine.terms[0] + engine.terms[1] - total) / total,
  };
}

async function run({ ticket, x0, settings, iterations, warm }) {
  const mine = ++newest;
  let milliseconds = 0;
  const timed = (compute) => {
    const begun = performance.now();
    const result = compute();
    milliseconds += performance.now() - begun;
    return result;
  };
  const begun = warm && last ? x0.map((grey, i) => (grey === last.x0[i] ? last.x[i] : grey)) : x0;
  let lower = true;
  for (let t = 0; t <= iterations; t++) {
    if (t === 0) timed(() => engine.start(x0, settings, begun));
    else lower = timed(engine.step);
    if (warm || t === iterations) last = { x0, x: engine.x.slice() }; // a whole run cut short must not undo what has healed
    const weight = ["anchored", "composite"].includes(settings.descent) ? engine.weight.slice() : null;
    const frame = { x: engine.x.slice(), f: engine.f.slice(), weight, terms: [...engine.terms], alpha: engine.alpha, lower };
    const moved = [frame.x.buffer, frame.f.buffer, ...(weight ? [weight.buffer] : [])];
    postMessage({ kind: "frame", ticket, t, ...frame }, moved);
    await giveWay();
    if (mine !== newest) return;
  }
  postMessage({ kind: "done", ticket, milliseconds });
}

onmessage = async ({ data }) => {
  try {
    if (data.kind === "open") {
      engine = await createEngine(data.wasm, data.model, data.expected);
      postMessage({ kind: "ready", difference: differences(data.check) });
    } else if (data.kind === "run") await run(data);
  } catch (error) {
    postMessage({ kind: "error", ticket: data.ticket, message: error.message });
  }
};
