views.push({
  name: "expert_map",
  title: "Layers and experts",
  build(root, panel) {
    const { trace, settings } = panel;
    const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
    const ROW = 10, LEFT = 26, BOTTOM = 18;
    const scopes = el("div", { class: "rp-segments", role: "radiogroup", "aria-label": "Map scope" });
    for (const [scope, label] of [["token", "current token"], ["answer", "whole answer"], ["prompt", "prompt"]]) {
      const input = el("input", { type: "radio", name: panel.group("rp-scope"), value: scope });
      input.checked = scope === settings.scope;
      input.addEventListener("change", () => {
        settings.scope = scope;
        panel.recolour();
      });
      scopes.append(el("label", {}, input, el("span", {}, label)));
    }
    const maps = el("div", { class: "rp-maps" });
    const legend = el("div", { class: "rp-legend" }, el("span", { class: "rp-bar" }), el("span", { class: "rp-chance" }), el("span", { class: "rp-scale" }));
    const value = el("p", { class: "rp-line" });
    root.append(scopes, maps, legend, value);
    let canvases = [];
    let colours = [];
    let at = null; // [n, l, unit] under the pointer or the keyboard cursor
    let top = 1;
    new ResizeObserver(() => trace.id && update()).observe(maps);

    function reset() {
      at = null;
      canvases = trace.kinds.map((kind, n) => {
        const canvas = el("canvas", { tabindex: "0", role: "img" });
        canvas.addEventListener("pointermove", (event) => point(event, n));
        canvas.addEventListener("pointerleave", () => move(null));
        canvas.addEventListener("blur", () => move(null));
        canvas.addEventListener("keydown", (event) => key(event, n));
        canvas.addEventListener("click", () => at && panel.setLayer(at[1]));
        return canvas;
      });
      maps.replaceChildren(...trace.kinds.map((kind, n) => el("figure", {}, el("figcaption", {}, kind), canvases[n])));
    }

    const share = (l, n) => {
      const t = panel.current();
      if (settings.scope !== "token") return trace.load(settings.scope, l, n, panel.single());
      return t < 0 ? [] : Array.from(trace.massOf(t, l, n, panel.single()), (sum) => sum / 65535);
    };

    function update() {
      if (!canvases.length) return;
      const dark = document.body.classList.contains("dark");
      colours = dark ? VIRIDIS : [...VIRIDIS].reverse();
      const values = canvases.map((_, n) => Array.from({ length: trace.L }, (_, l) => share(l, n)));
      const chance = 1 / panel.units();
      top = settings.scope === "token" ? 1 : Math.min(1, Math.max(2 * chance, ...values.flat().map((row) => Math.max(0, ...row))));
      canvases.forEach((canvas, n) => draw(canvas, n, values[n]));
      explain(chance);
      spell();
    }

    function draw(canvas, n, rows) {
      const units = panel.units();
      const width = canvas.parentNode.clientWidth, height = trace.L * ROW + BOTTOM;
      const ratio = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.height = `${height}px`;
      }
      const pen = canvas.getContext("2d");
      const style = getComputedStyle(canvas);
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      const cell = (width - LEFT) / units;
      rows.forEach((row, l) => row.forEach((share, unit) => {
        pen.fillStyle = colour(share);
        pen.fillRect(LEFT + unit * cell, l * ROW, Math.max(1, cell - 1), ROW - 1);
      }));
      frame(pen, n, cell, units, style.color);
      labels(pen, cell, units, height, style);
    }

    function frame(pen, n, cell, units, ink) {
      pen.strokeStyle = ink;
      if (n === settings.kind) pen.strokeRect(LEFT - 0.5, settings.layer * ROW - 0.5, units * cell, ROW);
      if (at && at[0] === n) {
        pen.lineWidth = 2;
        pen.strokeRect(LEFT + at[2] * cell, at[1] * ROW, cell - 1, ROW - 1);
        pen.lineWidth = 1;
      }
    }

    function labels(pen, cell, units, height, style) {
      pen.fillStyle = style.color;
      pen.font = `10px ${style.fontFamily}`;
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      for (let l = 0; l < trace.L; l += 5) pen.fillText(String(l), LEFT - 6, l * ROW + ROW / 2);
      pen.textAlign = "center";
      const step = Math.max(1, Math.ceil(20 / cell));
      for (let unit = 0; unit < units; unit += step) pen.fillText(String(unit), LEFT + (unit + 0.5) * cell, height - 7);
    }

    function colour(share) {
      const place = Math.max(0, Math.min(1, share / top)) * (colours.length - 1);
      const low = Math.floor(place), high = Math.min(low + 1, colours.length - 1);
      const part = (hex, from) => parseInt(hex.slice(from, from + 2), 16);
      const mix = [1, 3, 5].map((from) => Math.round(part(colours[low], from) + (place - low) * (part(colours[high], from) - part(colours[low], from))));
      return `rgb(${mix.join(",")})`;
    }

    function explain(chance) {
      const [start, end] = trace.scope(settings.scope);
      const what = settings.scope === "token" ? "gate of one token" : `share of assignments in ${end - start} tokens`;
      legend.children[0].style.background = `linear-gradient(90deg, ${colours.join(",")})`;
      legend.children[1].style.left = `${(100 * chance) / top}%`;
      legend.children[1].textContent = `chance ${chance.toFixed(3)} = 1/${panel.units()}`;
      legend.children[2].replaceChildren(el("span", {}, "0"), el("span", {}, what), el("span", {}, top.toFixed(2)));
      canvases.forEach((canvas, n) => canvas.setAttribute("aria-label",
        `${trace.kinds[n]}: ${what}, ${trace.L} layers by ${panel.units()} ${panel.trace.tied && !panel.single() ? "copies" : "experts"}. The table below has the numbers; arrow keys move a cursor.`));
    }

    function point(event, n) {
      const box = canvases[n].getBoundingClientRect();
      const unit = Math.floor((event.clientX - box.left - LEFT) / ((box.width - LEFT) / panel.units()));
      const l = Math.floor((event.clientY - box.top) / ROW);
      move(unit >= 0 && unit < panel.units() && l >= 0 && l < trace.L ? [n, l, unit] : null);
    }

    function key(event, n) {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      const [, l, unit] = at ?? [n, settings.layer, 0];
      const clamp = (value, size) => Math.max(0, Math.min(size - 1, value));
      move(at ? [n, clamp(l + step[0], trace.L), clamp(unit + step[1], panel.units())] : [n, l, unit]);
      event.preventDefault();
    }

    function move(place) {
      if (String(place) === String(at)) return;
      at = place;
      update();
    }

    function spell() {
      if (!at) return (value.textContent = "Hover over a cell or use the arrow keys to read its value.");
      const [n, l, unit] = at;
      const number = share(l, n)[unit] ?? 0;
      const times = (number * panel.units()).toFixed(2);
      value.textContent = `Layer ${l}, ${trace.kinds[n]}, ${panel.unitName()} ${unit}: ${number.toFixed(3)} · ${times} × chance`;
    }

    return { reset, update, recolour: update, select: () => settings.scope === "token" && update() };
  },
});
