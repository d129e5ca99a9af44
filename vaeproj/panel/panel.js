// A picture, and in an area of it a box to move by mouse, touch or arrow keys: the front end of `Stage` in widgets.py.
const percent = (part, whole) => `${(100 * part) / whole}%`;

function render({ model, el }) {
  const [width, height] = model.get("size");
  const [areaX, areaY, areaWidth, areaHeight] = model.get("area");
  const [boxWidth, boxHeight] = model.get("box");
  const room = [areaWidth - boxWidth, areaHeight - boxHeight]; // how far the box can go
  const wipe = model.get("cover").length > 0;

  const add = (parent, tag, name, left, top, w, h) => {
    const node = parent.appendChild(document.createElement(tag));
    node.className = name;
    Object.assign(node.style, { left, top, width: w, height: h });
    return node;
  };
  el.classList.add("vaeproj-stage");
  const image = add(el, "img", "stage-image");
  Object.assign(image, { width, height, draggable: false, alt: model.get("label") }); // holds the place until it is loaded
  const area = add(
    el, "div", wipe ? "stage-area wipe" : "stage-area",
    percent(areaX, width), percent(areaY, height), percent(areaWidth, width), percent(areaHeight, height),
  );
  const cover = add(area, "canvas", "stage-cover");
  const box = add(area, "div", "stage-box", 0, 0, percent(boxWidth, areaWidth), percent(boxHeight, areaHeight));
  box.tabIndex = room[0] || room[1] ? 0 : -1;
  box.setAttribute("role", "slider");
  box.setAttribute("aria-label", model.get("label"));
  box.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not JupyterLab's
  Object.assign(cover, { width: areaWidth, height: areaHeight });

  image.onload = () => {
    const [x, y] = model.get("cover");
    if (wipe) cover.getContext("2d").drawImage(image, -x, -y); // only the part that lies in the canvas
  };
  const show = () => {
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(new Blob([model.get("jpeg")], { type: "image/jpeg" }));
  };
  const place = () => {
    const [x, y] = model.get("at");
    box.style.left = percent(x, areaWidth);
    box.style.top = percent(y, areaHeight);
    cover.style.clipPath = `inset(0 ${percent(areaWidth - x, areaWidth)} 0 0)`; // left of the box
    box.setAttribute("aria-valuenow", x);
    box.setAttribute("aria-valuetext", wipe ? percent(x, areaWidth) : `x ${x}, y ${y}`);
  };
  const move = (...to) => {
    model.set("at", to.map((v, i) => Math.round(Math.min(Math.max(v, 0), room[i]))));
    model.save_changes();
  };

  let held = null; // where the pointer holds the box, from the box's corner
  const pointed = (event) => {
    const { left, top, width: w, height: h } = area.getBoundingClientRect();
    return [((event.clientX - left) * areaWidth) / w, ((event.clientY - top) * areaHeight) / h];
  };
  area.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    box.focus({ preventScroll: true });
    area.setPointerCapture(event.pointerId);
    const [x, y] = pointed(event);
    held = event.target === box ? [x - model.get("at")[0], y - model.get("at")[1]] : [boxWidth / 2, boxHeight / 2];
    move(x - held[0], y - held[1]);
  });
  area.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [x, y] = pointed(event);
    move(x - held[0], y - held[1]);
  });
  for (const end of ["pointerup", "pointercancel"]) area.addEventListener(end, () => (held = null));
  box.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const stride = event.shiftKey ? 1 : areaWidth / 32;
    move(...model.get("at").map((v, i) => v + stride * way[i]));
  });

  model.on("change:jpeg", show);
  model.on("change:at", place);
  show();
  place();
  return () => {
    model.off("change:jpeg", show);
    model.off("change:at", place);
  };
}

export default { render };
