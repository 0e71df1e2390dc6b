// The load by layer and expert (or group) at one evaluation, or its change since the first evaluation.
function createHeatMap() {
  const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
  const MOVED = {
    light: ["#0072b2", "#9cc4de", "#f4f5f7", "#f2b48c", "#d55e00"],
    dark: ["#56b4e9", "#2b5c7c", "#1d2431", "#7c451f", "#f08a3c"],
  };
  const ROW = 10, LEFT = 26, BOTTOM = 18;
  const slider = el("input", { type: "range", min: "0", max: "0", value: "0", step: "1" });
  const out = el("output", { class: "rn-slide-out" });
  const modes = segments("Map values", [["load", "load"], ["moved", "change since the first"]], draw);
  const maps = el("div", { class: "rn-maps" });
  const bar = el("span", { class: "rn-bar" }), ends = el("span", { class: "rn-ends" });
  const value = el("p", { class: "rn-value" });
  const body = el("tbody"), scroll = table("Routing load, numbers", [], body);
  const head = scroll.querySelector("tr"), caption = scroll.querySelector("caption");
  const twin = el("details", { class: "rn-twin" }, el("summary", {}, "Numbers"), scroll);
  const root = el("section", { class: "rn-heat", "aria-label": "Routing load", hidden: "" },
    el("h4", {}, "Routing load"),
    el("div", { class: "rn-tools" }, modes.root, el("label", { class: "rn-slide" }, el("span", {}, "Evaluation"), slider, out)),
    maps, el("div", { class: "rn-scale" }, bar, ends), value, twin);
  let routings = [], canvases = [], kinds = "", at = null, shown = null;

  slider.addEventListener("input", draw);
  twin.addEventListener("toggle", tabulate);
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(maps);
  new MutationObserver(draw).observe(document.body, { attributeFilter: ["class"] });

  // While the last evaluation is selected, the map moves on to new ones.
  function show(all) {
    const usable = all.filter(({ values }) => Array.isArray(values.load) && values.load.length && Array.isArray(values.kinds));
    const follows = !routings.length || Number(slider.value) >= routings.length - 1;
    const isNew = usable.at(-1) !== routings.at(-1);
    if (isNew) delete twin.dataset.step;
    routings = usable;
    root.hidden = !routings.length;
    if (root.hidden) return;
    slider.max = String(routings.length - 1);
    if (follows) slider.value = slider.max;
    const names = routings.at(-1).values.kinds.join("\n");
    if (names !== kinds) build(routings.at(-1).values.kinds);
    kinds = names;
    if (isNew || follows) draw();
  }

  function build(names) {
    at = null;
    canvases = names.map((_, n) => {
      const canvas = el("canvas", { tabindex: "0", role: "img" });
      canvas.addEventListener("pointermove", (event) => point(event, n));
      canvas.addEventListener("pointerleave", () => move(null));
      canvas.addEventListener("blur", () => move(null));
      canvas.addEventListener("keydown", (event) => key(event, n));
      return canvas;
    });
    maps.replaceChildren(...names.map((name, n) => el("figure", {}, el("figcaption", {}, name), canvases[n])));
  }

  const isMoved = () => modes.value() === "moved";
  const unitName = () => (shown.values.unit === "group" ? "group" : "expert");
  const unitCount = () => shown.values.load[0][0].length;
  const share = (l, n, unit, routing = shown) => routing.values.load[l]?.[n]?.[unit] ?? 0;
  const number = (l, n, unit) => share(l, n, unit) - (isMoved() ? share(l, n, unit, routings[0]) : 0);

  function draw() {
    if (root.hidden || !routings.length) return;
    const index = Math.min(Number(slider.value), routings.length - 1);
    shown = routings[index];
    setText(out, `step ${figure(shown.step)}, ${index + 1} of ${routings.length}`);
    const dark = document.body.classList.contains("dark");
    const colours = isMoved() ? MOVED[dark ? "dark" : "light"] : dark ? VIRIDIS : [...VIRIDIS].reverse();
    const chance = 1 / unitCount(), top = highest(chance);
    canvases.forEach((canvas, n) => paint(canvas, n, colours, top));
    bar.style.background = `linear-gradient(90deg, ${colours.join(",")})`;
    const labels = isMoved() ? [`−${top.toFixed(2)}`, "change in share since the first evaluation", `+${top.toFixed(2)}`]
      : ["0", `share of assignments; chance is ${chance.toFixed(3)} = 1/${unitCount()}`, top.toFixed(2)];
    ends.replaceChildren(...labels.map((text) => el("span", {}, text)));
    spell();
    tabulate();
  }

  // The maximum of all evaluations, so that colours can be compared while the slider moves.
  function highest(chance) {
    let top = isMoved() ? 0.02 : Math.min(1, 2 * chance);
    for (const { values } of routings)
      values.load.forEach((kindsOf, l) => kindsOf.forEach((units, n) => units.forEach((one, unit) => {
        top = Math.max(top, isMoved() ? Math.abs(one - share(l, n, unit, routings[0])) : one);
      })));
    return top;
  }

  function paint(canvas, n, colours, top) {
    const layers = shown.values.load.length, units = unitCount();
    const width = canvas.parentNode.clientWidth, height = layers * ROW + BOTTOM, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas), cell = (width - LEFT) / units;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (let l = 0; l < layers; l++)
      for (let unit = 0; unit < units; unit++) {
        const place = number(l, n, unit) / top;
        pen.fillStyle = mixed(colours, isMoved() ? (place + 1) / 2 : place);
        pen.fillRect(LEFT + unit * cell, l * ROW, Math.max(1, cell - 1), ROW - 1);
      }
    if (at && at[0] === n) {
      pen.strokeStyle = style.color;
      pen.lineWidth = 2;
      pen.strokeRect(LEFT + at[2] * cell, at[1] * ROW, cell - 1, ROW - 1);
    }
    pen.fillStyle = style.color;
    pen.font = `10px ${style.fontFamily}`;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (let l = 0; l < layers; l += 5) pen.fillText(String(l), LEFT - 6, l * ROW + ROW / 2);
    pen.textAlign = "center";
    const every = Math.max(1, Math.ceil(20 / cell));
    for (let unit = 0; unit < units; unit += every) pen.fillText(String(unit), LEFT + (unit + 0.5) * cell, height - 7);
    const what = `load of ${layers} layers by ${units} ${unitName()}s at step ${shown.step}`;
    const keys = "Arrow keys move a cursor; the table below has the numbers.";
    canvas.setAttribute("aria-label", `${shown.values.kinds[n]}: ${what}. ${keys}`);
  }

  function mixed(colours, share) {
    const place = Math.max(0, Math.min(1, share)) * (colours.length - 1), at = Math.min(Math.floor(place), colours.length - 2);
    const [low, high] = [colours[at], colours[at + 1]].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
    return `rgb(${low.map((part, i) => Math.round(part + (place - at) * (high[i] - part))).join(",")})`;
  }

  function point(event, n) {
    const box = canvases[n].getBoundingClientRect();
    const unit = Math.floor((event.clientX - box.left - LEFT) / ((box.width - LEFT) / unitCount()));
    const l = Math.floor((event.clientY - box.top) / ROW);
    move(unit >= 0 && unit < unitCount() && l >= 0 && l < shown.values.load.length ? [n, l, unit] : null);
  }

  function key(event, n) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    const clamp = (place, size) => Math.max(0, Math.min(size - 1, place));
    move(at?.[0] === n ? [n, clamp(at[1] + step[0], shown.values.load.length), clamp(at[2] + step[1], unitCount())] : [n, 0, 0]);
    event.preventDefault();
  }

  function move(place) {
    if (String(place) === String(at)) return;
    at = place;
    draw();
  }

  function spell() {
    if (!at) return setText(value, "Hover over a cell or use the arrow keys to read its value.");
    const [n, l, unit] = at, [now, then] = [shown, routings[0]].map((routing) => share(l, n, unit, routing).toFixed(3));
    setText(value, `Layer ${l}, ${shown.values.kinds[n]}, ${unitName()} ${unit}: ${now}, ${then} at the first evaluation`);
  }

  function tabulate() {
    if (!twin.open || !shown || twin.dataset.step === String(shown.step)) return;
    twin.dataset.step = shown.step;
    const names = shown.values.kinds.flatMap((kind) => Array.from({ length: unitCount() }, (_, unit) => `${kind} ${unit}`));
    setText(caption, `Load by layer at step ${shown.step}`);
    head.replaceChildren(...columns(["Layer", ...names]));
    body.replaceChildren(...shown.values.load.map((ofLayer, l) => tableRow(String(l), ofLayer.flat().map(String))));
  }

  return { root, show, draw };
}
