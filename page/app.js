// The page: what is painted, what the worker answers, what is drawn. All computing is the worker's; here one drawing a frame.

"use strict";

const $ = (id) => document.getElementById(id);
const LIMIT = 1e-3; // the largest difference to PyTorch that still counts as the same
// Healing under the brush, for the eye to follow: so many short runs, so many milliseconds apart, with a part of the step.
const [BEATS, BEAT_MS, BEAT_STEP] = [16, 40, 0.3];
const MOVED = 0.05; // a change that the eye sees, grey levels
const KNOBS = ["alpha", "iterations", "passes", "lam", "tolerance", "hardness", "coarse_weight", "gradient"];

let state = usual();
let writing = 0;
function remember() {
  clearTimeout(writing); // browsers refuse to write an address too often
  writing = setTimeout(() => {
    const address = addressOf(state);
    history.replaceState(null, "", address === "#" ? location.pathname + location.search : address);
    showShare();
  }, 150);
}

// ---- Scene: the picture painted on, and what is known of it ----

let scene = null; // {base: unpainted, x0: painted, truth, mask, still: what is shown until the worker has answered}
let opening = null;

async function openScene() {
  const mine = (opening = {});
  const crop = state.own ? null : DATA.crops.find(({ name }) => name === state.crop);
  const urls = crop
    ? [crop.image, crop.truth ?? crop.image, crop.mask, crop.results[state.descent], crop.f]
    : [`data:image/jpeg;base64,${fromUrl(state.own)}`, null, null, null, null];
  const [base, truth, mask, result, f] = await Promise.all(urls.map(decoded)).catch(() => [null]);
  if (mine !== opening) return;
  if (!base) return choose({ own: "" }); // an address cut off
  scene = { base, x0: painted(base, state.strokes), truth, mask, still: { x: result ?? base, x0: base, f } };
  Object.assign(run, { path: [], live: null, ticket: run.ticket + 1 }); // what is still to come belongs to the scene before
  redraw();
  for (const outline of document.querySelectorAll(".outline")) outline.setAttribute("d", mask ? border(mask) : "");
  $("truthFigure").hidden = !truth;
  if (truth) put($("truth"), GREYS, (i) => truth[i]);
  ask(false);
}

// Another picture: the paint is gone, the sliders stay.
function choose(changes) {
  Object.assign(state, { strokes: [], t: "end" }, changes);
  mark($("crops"), state.own ? "" : state.crop);
  $("ownTile").classList.toggle("on", state.own !== "");
  play(false);
  openScene();
  remember();
}

async function takeFile(file) {
  try {
    const greys = greysOf(await createImageBitmap(file));
    const canvas = document.createElement("canvas");
    put(canvas, GREYS, (i) => greys[i]);
    // What the address can hold is the picture from now on: whoever opens it sees the same.
    choose({ own: toUrl(canvas.toDataURL("image/jpeg", 0.9).split(",")[1]) });
  } catch {
    say((w) => w.ownFailed);
  }
}

// ---- Brush ----

let pen = null; // the stroke on its way

function press(point) {
  if (!scene || pen) return false;
  const stroke = { ink: state.ink, radius: state.radius, points: [] };
  pen = strokeOn(scene.x0, stroke);
  state.strokes.push(stroke);
  state.t = "end";
  play(false);
  document.body.classList.add("painted");
  if ((100 * point[0]) / SIDE_PX < state.wipe) wipeTo(0, true); // healing shows only right of the divider
  drawTo(point);
  return true;
}

function drawTo(point) {
  const { points } = pen.stroke;
  const before = points.at(-1);
  if (before && Math.hypot(point[0] - before[0], point[1] - before[1]) < 1) return;
  points.push(point);
  cover(scene.x0, scene.base, pen, before ?? point, point);
  const resting = !run.beats;
  run.beats = BEATS;
  if (resting) ask(true);
  redraw();
}

function lift() {
  pen = null;
  if (!run.beats) ask(false);
  remember();
}

// The brush's ring on the stage, where the pointer or the keyboard has it.
function hover(point, element) {
  if (element !== $("stage")) return;
  $("ring").style.visibility = point ? "visible" : "hidden";
  const circle = point ? { cx: point[0], cy: point[1], r: state.radius } : {};
  for (const [name, value] of Object.entries(circle)) $("ring").setAttribute(name, value);
}

const undo = () => repaint(state.strokes.slice(0, -1));
const tell = ([column, row]) => say((w) => w.at(column, row));
const brush = { press, move: drawTo, lift, hover, undo, tell };

function repaint(strokes) {
  if (!scene) return;
  state.strokes = strokes;
  scene.x0 = painted(scene.base, strokes);
  redraw();
  ask(false);
  remember();
}

// ---- Runs ----

const worker = new Worker(URL.createObjectURL(new Blob([DATA.worker], { type: "text/javascript" })));
// path: the states of the last whole run; live: the newest while one paints; beats: short runs still to come.
const run = { ready: false, ticket: 0, warm: false, frames: [], path: [], live: null, beats: 0, late: false };

// Warm: a few iterations from where the picture stands. Else the whole descent: so an address gives the same picture again.
function ask(warm) {
  clearTimeout(run.beat);
  if (!warm) run.beats = 0;
  run.late = !run.ready || document.hidden;
  if (run.late || !scene) return;
  const values = state.settings[state.descent];
  const whole = values.passes ?? values.iterations;
  Object.assign(run, { warm, ticket: run.ticket + 1, frames: [], x0: scene.x0.slice(), asked: performance.now() });
  run.last = warm ? Math.ceil(whole / BEATS) : whole;
  const rest = { gradient: "full", alpha: 0, lam: 0, tolerance: 1, hardness: 1, coarse_weight: 0 }; // of other descents
  const settings = { ...rest, ...values, descent: state.descent };
  if (warm && state.descent === OWN) settings.alpha *= BEAT_STEP; // the paper's is slow enough
  const known = run.live !== null || run.path.length > 0; // else the worker stands on the scene before
  worker.postMessage({ kind: "run", ticket: run.ticket, x0: run.x0, settings, iterations: run.last, warm: warm && known });
  $("stage").ariaBusy = "true";
}

// A short run has ended: the next in time, or, when the brush is up and all has healed, the whole.
function beat() {
  run.beats--;
  if (run.beats > 0) run.beat = setTimeout(ask, BEAT_MS - (performance.now() - run.asked), true);
  else if (!pen) ask(false);
}

const answers = {
  ready({ difference }) {
    run.ready = true;
    prove(difference);
    ask(false);
  },
  frame(frame) {
    if (frame.ticket !== run.ticket) return;
    frame.x0 = run.x0;
    run.frames.push(frame);
    if (run.warm) run.live = frame;
    redraw();
  },
  done({ ticket, milliseconds }) {
    if (ticket !== run.ticket) return;
    if (run.warm) return beat();
    Object.assign(run, { path: run.frames, live: null });
    $("stage").ariaBusy = "false";
    showCurve();
    redraw();
    const { x } = run.path.at(-1);
    const moved = x.reduce((count, value, i) => count + (Math.abs(value - run.x0[i]) > MOVED), 0) / SIZE;
    const took = [run.last, Math.round(milliseconds), (100 * moved).toFixed(1)];
    say((w) => w.done(...took));
  },
  error({ message }) {
    run.beats = 0;
    $("stage").ariaBusy = "false";
    Object.assign($("proof"), { textContent: words().broken(message) }).dataset.state = "bad";
  },
};
worker.onmessage = ({ data }) => answers[data.kind](data);
worker.onerror = ({ message }) => answers.error({ message });

function prove(difference) {
  run.difference = difference;
  const good = Object.values(difference).every((value) => value <= LIMIT); // false for NaN too
  $("proof").dataset.state = good ? "good" : "bad";
  const written = (value) => value.toExponential(1).replace("-", "\u2011"); // a hyphen at which no line ends
  const digits = Object.fromEntries(Object.entries(difference).map(([name, value]) => [name, written(value)]));
  $("proof").textContent = words().proof(good, digits);
}

// ---- Drawing ----

let due = false;
function redraw() {
  if (!due) requestAnimationFrame(draw);
  due = true;
}

const lastOf = () => Math.max(0, run.path.length - 1);
const shownT = () => (state.t === "end" ? lastOf() : Math.min(state.t, lastOf()));

function draw() {
  due = false;
  if (!scene) return;
  const { x0, still } = scene;
  const shown = run.live ?? run.path[shownT()] ?? still;
  // Paint that this state has not seen lies on it as it is.
  const x = shown.x0 === x0 ? shown.x : shown.x.map((value, i) => (x0[i] === shown.x0[i] ? value : x0[i]));
  put($("after"), GREYS, (i) => x[i]);
  for (const id of ["before", "image"]) put($(id), GREYS, (i) => x0[i]);
  put($("change"), MAGMA, (i) => Math.abs(x[i] - x0[i]) / DATA.white);
  if (shown.f) put($("f"), GREYS, (i) => shown.f[i]);
  showIteration();
  $("terms").innerHTML = termsIn(words(), shown.terms);
  showCloseness([x0, shown.f, x]);
}

function showIteration() {
  const progress = run.frames !== run.path && !run.warm && run.frames.length > 20; // a short run ends before one could read it
  $("t").max = lastOf();
  $("t").value = shownT();
  $("t").disabled = $("play").disabled = !lastOf();
  $("tValue").value = progress ? `… ${run.frames.length - 1} / ${run.last}` : `t = ${run.path.length ? shownT() : "…"}`;
  $("undo").disabled = $("clear").disabled = !state.strokes.length;
  const at = lastOf() ? (400 * shownT()) / lastOf() : 0;
  $("energy").querySelector("line")?.setAttribute("transform", `translate(${at})`);
}

function showCurve() {
  const top = Math.max(...run.path.map(({ terms }) => terms[0] + terms[1]), 1e-9);
  $("energy").innerHTML = `${curves(run.path, top)}<line y1="0" y2="120"/>`;
  $("top").textContent = +top.toPrecision(2);
  $("last").textContent = `t = ${lastOf()}`;
}

// PSNR of test image, reconstruction and repair, where something is wrong and elsewhere.
function showCloseness(pictures) {
  const { truth, mask, base, x0 } = scene;
  $("psnr").hidden = !truth;
  if (!truth) return;
  const cells = $("psnr").querySelectorAll("tbody td");
  const wrong = (i) => mask?.[i] > 0.5 || x0[i] !== base[i];
  pictures.flatMap((picture) => closeness(picture, truth, wrong)).forEach((text, k) => (cells[k].textContent = text));
}

// ---- Play bar, and rest when out of sight ----

let playing = false;
let clock = 0; // milliseconds since iteration 0
let next = 0; // the animation frame asked for
let inView = true;
const pace = () => Math.min(110, Math.max(30, 2500 / Math.max(1, lastOf()))); // milliseconds an iteration: all of it in seconds

function play(on) {
  if (on && !playing) {
    if (shownT() === lastOf()) state.t = 0;
    clock = shownT() * pace();
    goOn();
  }
  playing = on;
  $("play").textContent = words()[on ? "pause" : "play"];
}

// `before`: when the frame before was; none after a rest.
function goOn(before) {
  cancelAnimationFrame(next);
  next = requestAnimationFrame((now) => tick(now, before ?? now));
}

function tick(now, before) {
  if (!playing || !inView) return;
  clock += now - before;
  const t = Math.floor(clock / pace());
  state.t = t < lastOf() ? t : "end";
  redraw();
  if (t < lastOf()) return goOn(now);
  play(false);
  remember();
}

function wake() {
  if (document.hidden || !inView) return;
  if (run.late) ask(false);
  if (playing) goOn();
}

// ---- Controls ----

const words = () => WORDS[state.lang];

let said = () => "";

// `sentence` of the page's words, in another language after a switch.
function say(sentence) {
  said = sentence;
  $("status").textContent = sentence(words());
}

function wipeTo(percent, glide = false) {
  state.wipe = Math.round(Math.min(100, Math.max(0, percent)));
  const { classList, style, dataset } = $("stage");
  classList.toggle("gliding", glide);
  style.setProperty("--wipe", `${state.wipe}%`);
  dataset.side = state.wipe < 20 ? "after" : state.wipe > 80 ? "before" : "both";
  $("wipe").value = state.wipe;
  $("wipe").ariaValueText = words().wiped(state.wipe);
  $("wipeValue").value = `${state.wipe} %`;
  remember();
}

function showChoices() {
  const { defects, crop: cropName, descents } = words();
  const thumbs = DATA.crops.map(({ name, defect, image }) => {
    const picture = Object.assign(new Image(), { src: image, alt: "" });
    return [name, [picture], cropName(defects[defect] ?? defect, name)];
  });
  radios($("crops"), thumbs, state.own ? "" : state.crop, (crop) => choose({ crop, own: "" }));
  const swatches = INKS.map((ink) => [ink, [document.createElement("i"), words()[ink]]]);
  radios($("inks"), swatches, state.ink, (ink) => {
    state.ink = ink;
    remember();
  });
  const names = Object.keys(DATA.descents).map((descent) => [descent, [descents[descent][0]]]);
  radios($("descents"), names, state.descent, (descent) => {
    Object.assign(state, { descent, t: "end" });
    showSliders();
    if (state.strokes.length) ask(false);
    else openScene(); // its result is there at once
    remember();
  });
}

function showSliders() {
  const values = state.settings[state.descent];
  $("about").textContent = words().descents[state.descent][1];
  const names = KNOBS.filter((name) => name in values);
  $("sliders").replaceChildren(
    ...names.map((name) => knob(name, values[name], DATA.descents[state.descent][name], words(), (value) => set(name, value))),
  );
  showIdle();
}

function set(name, value) {
  state.settings[state.descent][name] = value;
  showIdle();
  ask(false);
  remember();
}

function showIdle() {
  const off = idle(state.settings[state.descent]);
  for (const label of $("sliders").children) {
    label.querySelector("input, select").disabled = off.includes(label.dataset.name);
    label.classList.toggle("off", off.includes(label.dataset.name));
  }
}

// What is to be copied: the address, the command, the notebook cell.
function showShare() {
  $("address").textContent = location.href;
  $("command").textContent = commandOf(state);
  $("cell").textContent = cellOf(state, words());
}

async function copy(button) {
  const text = $(button.dataset.copy);
  getSelection().selectAllChildren(text);
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch {
    document.execCommand("copy"); // pages without https have no clipboard
  }
  button.textContent = words().copied;
  say((w) => w.copied);
  setTimeout(() => (button.textContent = words().copy), 1500);
}

// ---- Words ----

const isDark = () => (state.scheme ? state.scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

function speak() {
  const w = words();
  document.documentElement.lang = state.lang;
  document.documentElement.dataset.scheme = state.scheme;
  document.title = w.title;
  for (const element of document.querySelectorAll("[data-word]")) element.innerHTML = w[element.dataset.word];
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = w[element.dataset.label];
  const other = state.lang === "en" ? "ja" : "en";
  Object.assign($("lang"), { textContent: WORDS[other].name, lang: other });
  Object.assign($("scheme"), { textContent: isDark() ? "☀" : "☾", ariaLabel: w.schemeLabel(isDark()) });
  for (const id of ["undo", "clear", "scheme"]) $(id).title = $(id).ariaLabel; // their text is a sign
  $("ownTile").title = w.ownLabel;
  $("psnr").tBodies[0].innerHTML = w.rows.map((row) => `<tr><th scope="row">${row}</th><td></td><td></td></tr>`).join("");
  if (run.difference) prove(run.difference);
  else $("proof").textContent = w.waiting;
  play(playing);
  say(said);
  showChoices();
  showSliders();
  redraw();
}

// ---- Start ----

function restore() {
  state = stateOf(location.hash);
  $("radius").value = state.radius;
  document.body.classList.toggle("painted", state.strokes.length > 0);
  speak();
  wipeTo(state.wipe);
  openScene();
}

function switchTo(changes) {
  Object.assign(state, changes);
  speak();
  wipeTo(state.wipe);
}

for (const id of ["stage", "imageBox"]) paintable($(id), brush);
paintableByKeys($("stage"), brush);
draggable($("divider"), $("stage"), (part) => wipeTo(100 * part));
$("wipe").oninput = () => wipeTo(+$("wipe").value);
$("play").onclick = () => {
  play(!playing);
  remember();
};
$("t").oninput = () => {
  play(false);
  state.t = +$("t").value < lastOf() ? +$("t").value : "end";
  redraw();
  remember();
};
$("radius").oninput = () => {
  state.radius = +$("radius").value;
  remember();
};
$("undo").onclick = undo;
$("clear").onclick = () => repaint([]);
$("reset").onclick = () => {
  state.settings[state.descent] = { ...DATA.descents[state.descent] };
  showSliders();
  ask(false);
  remember();
};
$("own").onchange = () => $("own").files[0] && takeFile($("own").files[0]);
$("lang").onclick = () => switchTo({ lang: $("lang").lang });
$("scheme").onclick = () => switchTo({ scheme: isDark() ? "light" : "dark" });
for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => copy(button);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("over");
};
document.ondragleave = () => document.body.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0]) takeFile(event.dataTransfer.files[0]);
};
document.onvisibilitychange = wake;
new IntersectionObserver(([{ isIntersecting }]) => {
  inView = isIntersecting;
  wake();
}).observe($("stage"));
matchMedia("(prefers-color-scheme: dark)").onchange = speak;
onhashchange = restore;

$("white").textContent = `≥ ${DATA.white}`;
put($("bar"), MAGMA, (i) => i / 255, 256, 1);
const wasm = Uint8Array.from(atob(DATA.wasm), (c) => c.charCodeAt(0)).buffer;
worker.postMessage({ kind: "open", wasm, model: DATA.model, expected: DATA.expected, check: DATA.check }, [wasm]);
restore();
