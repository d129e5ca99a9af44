// All that the page's address holds, and the command and the notebook cell that give the same projection. Nothing here draws.

"use strict";

const SIDE_PX = DATA.side;
const INKS = ["bright", "dark", "erase"];
const SHADES = { bright: 0.92, dark: 0.06, erase: null }; // grey levels; erasing brings back what is under the paint
const OWN = "anchored"; // the descent that a preset takes where none is named

// The page opens with what shows at a glance how a defect goes.
const FIRST = DATA.crops.find(({ defect }) => defect === "broken") ?? DATA.crops.find(({ mask }) => mask) ?? DATA.crops[0];

const usual = () => ({
  crop: FIRST.name, own: "", strokes: [], descent: OWN, settings: structuredClone(DATA.descents),
  t: "end", wipe: 50, ink: "bright", radius: 2.5, lang: navigator.language.startsWith("ja") ? "ja" : "en", scheme: "",
});
const SAID = ["crop", "own", "descent", "t", "wipe", "ink", "radius", "scheme"];

function addressOf(s) {
  const plain = usual();
  const said = new URLSearchParams();
  for (const name of SAID) if (s[name] !== plain[name]) said.set(name, s[name]);
  for (const [descent, settings] of Object.entries(s.settings))
    for (const [name, value] of Object.entries(settings))
      if (value !== plain.settings[descent][name]) said.set(`${descent}.${name}`, value);
  if (s.strokes.length) said.set("paint", packed(s.strokes));
  if (said.size || s.lang !== plain.lang) said.set("lang", s.lang); // who opens it may have set another language
  return `#${said}`;
}

// What does not fit, as in a mistyped address, stays as usual.
function stateOf(address) {
  const s = usual();
  const said = new URLSearchParams(address.slice(1));
  const within = (low, high) => (text) => text !== "" && +text >= low && +text <= high;
  const oneOf = (names) => (text) => names.includes(text);
  const fits = {
    crop: oneOf(DATA.crops.map((crop) => crop.name)), own: (text) => /^[\w-]+$/.test(text),
    descent: oneOf(Object.keys(DATA.descents)),
    t: within(0, 1e5), wipe: within(0, 100), ink: oneOf(INKS), radius: within(1, 10),
    scheme: oneOf(["light", "dark"]), lang: oneOf(Object.keys(WORDS)),
  };
  const take = (values, name, key, fit) => {
    const text = said.get(key) ?? "";
    if (fit(text)) values[name] = Number.isNaN(+text) ? text : +text;
  };
  for (const name of Object.keys(fits)) take(s, name, name, fits[name]);
  for (const [descent, settings] of Object.entries(s.settings))
    for (const name of Object.keys(settings)) {
      const { low, high } = DATA.sliders[name] ?? {};
      take(settings, name, `${descent}.${name}`, name === "gradient" ? oneOf(["full", "detached"]) : within(low, high));
    }
  s.strokes = unpacked(said.get("paint") ?? "");
  return s;
}

const toUrl = (base64) => base64.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const fromUrl = (text) => text.replaceAll("-", "+").replaceAll("_", "/");

// A stroke in bytes: its ink and twice its radius, its number of points in two, then twice the column and row of each.
function packed(strokes) {
  const bytes = strokes.flatMap(({ ink, radius, points }) => [
    (INKS.indexOf(ink) << 6) | (2 * radius), points.length >> 8, points.length & 255,
    ...points.flat().map((place) => 2 * place),
  ]);
  return toUrl(btoa(bytes.map((byte) => String.fromCharCode(byte)).join("")));
}

function unpacked(text) {
  if (!/^[\w-]*$/.test(text) || text.length % 4 === 1) return [];
  const bytes = Array.from(atob(fromUrl(text)), (c) => c.charCodeAt(0));
  const strokes = [];
  while (bytes.length > 4) {
    const [head, high, low] = bytes.splice(0, 3);
    const places = bytes.splice(0, 2 * ((high << 8) | low)).map((byte) => byte / 2);
    const points = Array.from({ length: places.length >> 1 }, (_, i) => places.slice(2 * i, 2 * i + 2));
    if (points.length) strokes.push({ ink: INKS[head >> 6] ?? INKS[0], radius: (head & 63) / 2, points });
  }
  return strokes;
}

// As `Config` takes them: what differs from the descent's own settings.
function changedSettings({ descent, settings }) {
  const named = [OWN, "composite"].includes(descent) ? [] : [`descent=${descent}`];
  const usually = { ...DATA.descents[descent], passes: settings[descent].passes }; // passes are no setting there
  const changed = Object.entries(settings[descent]).filter(([name, value]) => value !== usually[name]);
  return [...DATA.run.settings.split(" ").filter(Boolean), ...named, ...changed.map((pair) => pair.join("="))];
}

function commandOf(s) {
  const { preset, category } = DATA.run;
  const options = [`--preset ${preset}`, ...(category === "grid" ? [] : [`--category ${category}`])];
  return ["python -m vaeproj run 04", ...options, ...changedSettings(s).map((setting) => `--set ${setting}`)].join(" ");
}

function cellOf(s, words) {
  const { preset, category } = DATA.run;
  const compositing = s.descent === "composite";
  const request = [`preset="${preset}"`, `settings="${changedSettings(s).join(" ")}"`];
  if (category !== "grid") request.push(`category="${category}"`);
  const lines = [
    "import matplotlib.pyplot as plt",
    ...(s.own ? ["import numpy as np"] : []),
    ...(s.own || s.strokes.length ? ["import torch"] : []),
    ...(s.own ? ["from PIL import Image, ImageOps"] : []),
    `from vaeproj.projection import ${compositing ? "composite" : "project"}`,
    "from vaeproj.workspace import Request, Workspace",
    "",
    `ws = Workspace.open(Request(${request.join(", ")}, device="cpu"))`,
    ...(s.own ? photoLines(words) : [`x_0, _, _ = ws.crops_at(["${s.crop}"])`]),
    ...(s.strokes.length ? paintLines(s.strokes, words) : []),
    ...(compositing
      ? ["x = x_0", `for _ in range(${s.settings.composite.passes}):`, "    x = composite(ws.vae, x_0, ws.config, ws.expected, x)"]
      : ["x = project(ws.vae, x_0, ws.config, ws.expected)"]),
    'plt.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)',
  ];
  return lines.join("\n");
}

const photoLines = (words) => [
  `photo = ImageOps.fit(Image.open("photo.jpg").convert("L"), (${SIDE_PX}, ${SIDE_PX}))  # ${words.photo}`,
  "x_0 = torch.tensor(np.asarray(photo) / 255).float()[None, None]",
];

// The brush of app.js (`cover`) in torch.
function paintLines(strokes, words) {
  const way = (points) => points.map((point) => `(${point.join(", ")})`).join(", ");
  const rows = strokes.map(({ ink, radius, points }) => `    (${radius}, ${SHADES[ink] ?? "None"}, [${way(points)}]),`);
  return [
    "",
    `strokes = [  # ${words.painted}`,
    ...rows,
    "]",
    `row, column = torch.meshgrid(torch.arange(${SIDE_PX}) + 0.5, torch.arange(${SIDE_PX}) + 0.5, indexing="ij")`,
    "unpainted = x_0.clone()",
    "for radius, grey, points in strokes:",
    '    far = torch.full_like(row, float("inf"))',
    "    for (x, y), (x_next, y_next) in zip(points, points[1:] or points):",
    "        dx, dy = x_next - x, y_next - y",
    "        along = (((column - x) * dx + (row - y) * dy) / (dx * dx + dy * dy or 1)).clamp(0, 1)",
    "        far = far.minimum((column - x - along * dx).hypot(row - y - along * dy))",
    "    x_0 = x_0.lerp(unpainted if grey is None else torch.full_like(x_0, grey), (radius + 0.5 - far).clamp(0, 1))",
    "",
  ];
}
