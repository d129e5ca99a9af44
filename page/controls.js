// What a hand moves: choices, sliders, a surface to paint on, a divider to drag. Each tells the page by a function it is given.

"use strict";

// Radio buttons in a fieldset: [value, what its label shows, name if that shows no words].
function radios(fieldset, entries, checked, changed) {
  const labels = entries.map(([value, shown, name]) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: fieldset.id, value, checked: value === checked });
    input.onchange = () => changed(value);
    if (name) input.ariaLabel = name;
    const label = Object.assign(document.createElement("label"), { className: value, title: name ?? "" });
    label.append(input, ...shown);
    return label;
  });
  fieldset.replaceChildren(fieldset.querySelector("legend"), ...labels);
}

function mark(fieldset, value) {
  for (const input of fieldset.querySelectorAll("input")) input.checked = input.value === value;
}

// A hyper-parameter's slider over its stations, or its choice of two.
function knob(name, value, plain, words, changed) {
  const [title, help] = words.knobs[name];
  const label = Object.assign(document.createElement("label"), { title: help });
  label.dataset.name = name;
  const text = Object.assign(document.createElement("span"), { textContent: title });
  const control = name === "gradient" ? choice(value, words, changed) : ladder(DATA.sliders[name], value, plain, changed);
  label.append(text, ...control);
  return label;
}

function choice(value, words, changed) {
  const select = document.createElement("select");
  select.append(...["full", "detached"].map((kind) => new Option(words[kind], kind, false, kind === value)));
  select.onchange = () => changed(select.value);
  return [select];
}

// The value that an address or a descent brings along is a station, too.
function ladder({ low, high, stations }, value, plain, changed) {
  const values = [...new Set([...stations, plain, value])].filter((v) => v >= low && v <= high).sort((a, b) => a - b);
  const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: values.length - 1 });
  const output = document.createElement("output");
  const show = () => {
    output.value = range.ariaValueText = +values[range.value].toPrecision(3);
  };
  range.value = values.indexOf(value);
  range.oninput = () => {
    show();
    changed(values[range.value]);
  };
  show();
  return [range, output];
}

// The settings that change nothing as the others are.
function idle({ alpha, iterations }) {
  const all = ["gradient", "lam", "tolerance", "hardness", "coarse_weight"];
  return iterations === 0 ? ["alpha", ...all] : alpha === 0 ? all : [];
}

const onPicture = (place) => Math.min(SIDE_PX - 0.5, Math.max(0, place));

// Where an event is on the picture, in half pixels, as the address holds them.
function pointAt({ clientX, clientY }, element) {
  const { left, top, width, height } = element.getBoundingClientRect();
  return [(clientX - left) / width, (clientY - top) / height].map((part) => onPicture(Math.round(2 * SIDE_PX * part) / 2));
}

// A surface to paint on by mouse, pen or finger: `press`, `move` and `lift` a brush; it hovers in between, null: it has left.
function paintable(element, { press, move, lift, hover }) {
  let down = false;
  element.onpointerdown = (event) => {
    if (event.button || !event.isPrimary) return;
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    down = press(pointAt(event, element));
  };
  element.onpointermove = (event) => {
    hover(pointAt(event, element), element);
    if (!down || !event.isPrimary) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) move(pointAt(part, element)); // a fast hand outruns the frames
  };
  element.onpointerup = element.onpointercancel = (event) => {
    if (!event.isPrimary || !down) return;
    down = false;
    lift();
  };
  element.onpointerleave = () => hover(null, element);
}

// By keyboard: arrows move a cursor, the space bar holds the brush down.
function paintableByKeys(element, { press, move, lift, undo, hover, tell }) {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let cursor = [SIDE_PX / 2, SIDE_PX / 2];
  let down = false;
  const release = () => {
    if (down) lift();
    down = false;
  };
  element.onkeydown = (event) => {
    const way = ways[event.key];
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) undo();
    else if (event.key === " ") down ||= press(cursor);
    else if (way) {
      cursor = cursor.map((at, k) => onPicture(at + way[k] * (event.shiftKey ? 1 : 3)));
      hover(cursor, element);
      tell(cursor);
      if (down) move(cursor);
    } else return;
    event.preventDefault();
  };
  element.onkeyup = (event) => event.key === " " && release();
  element.onfocus = () => element.matches(":focus-visible") && hover(cursor, element);
  element.onblur = () => {
    release();
    hover(null, element);
  };
}

// What is dragged tells where it is, in parts of its stage's width.
function draggable(handle, stage, moved) {
  handle.onpointerdown = (event) => {
    event.stopPropagation(); // the stage would paint
    handle.setPointerCapture(event.pointerId);
  };
  handle.onpointermove = (event) => {
    event.stopPropagation();
    const { left, width } = stage.getBoundingClientRect();
    if (handle.hasPointerCapture(event.pointerId)) moved((event.clientX - left) / width);
  };
}
