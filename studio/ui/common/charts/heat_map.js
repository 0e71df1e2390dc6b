// Heat maps side by side, one for each kind of router: rows are layers, columns are experts or groups. A cursor follows
// the pointer and the arrow keys.

import { el } from "../dom.js";
import { clamp } from "../numbers.js";
import { oncePerFrame } from "../pacing.js";
import { mixColours } from "./palette.js";

const ROW = 10, LEFT = 26, BOTTOM = 18;
const LABEL_PX = 26, LAYERS_PER_LABEL = 5;
const STEPS = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity],
};

export const HOW_TO_READ = "Point at a cell, or use the arrow keys, to read its value. Grey cells are 0.";

export class HeatMap {
  // `redraw` is called when the size or the cursor has changed. The keyboard cursor starts in `firstLayer()`.
  constructor({ redraw, firstLayer = () => 0, onClick = () => {} }) {
    Object.assign(this, { redraw, firstLayer, onClick });
    this.root = el("div", { class: "ch-maps" });
    this.cursor = null; // { map, layer, unit }
    this.canvases = [];
    this.layers = this.units = 0;
    const later = oncePerFrame();
    new ResizeObserver(() => later(redraw)).observe(this.root);
  }

  // Starts again, with a map for each name.
  build(names) {
    this.cursor = null;
    this.canvases = names.map((_, map) => this.canvas(map));
    const figures = names.map((name, map) => el("figure", {}, el("figcaption", {}, name), this.canvases[map]));
    this.root.replaceChildren(...figures);
  }

  canvas(map) {
    const canvas = el("canvas", { tabindex: "0", role: "img" });
    for (const name of ["pointermove", "pointerdown"])
      canvas.addEventListener(name, (event) => this.moveCursor(this.cellAt(event, map)));
    // A finger leaves when it is lifted; the value that it pointed at stays.
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.moveCursor(null));
    canvas.addEventListener("blur", () => this.moveCursor(null));
    canvas.addEventListener("keydown", (event) => this.pressKey(event, map));
    canvas.addEventListener("click", () => this.cursor && this.onClick(this.cursor));
    return canvas;
  }

  // Draws all maps.
  //
  // values: for each map, the values of each layer and unit.
  // range: the values of the first and the last colour.
  // hasEmptyCells: cells of value 0 are grey, whatever the first colour is.
  // frame: { map, layer } of a row with a frame, or null.
  // label: returns the accessible name of a map.
  draw({ values, layers, units, colours, range, hasEmptyCells = false, frame = null, label }) {
    Object.assign(this, { layers, units });
    this.canvases.forEach((canvas, map) => {
      const pen = this.pen(canvas);
      canvas.setAttribute("aria-label", label(map));
      if (!pen) return;
      pen.cell = (pen.width - LEFT) / units;
      const empty = hasEmptyCells ? pen.style.getPropertyValue("--quiet-fill") : null;
      drawCells(pen, values[map], (value) => (empty && value === 0 ? empty : colourIn(colours, range, value)));
      if (frame?.map === map) drawFrame(pen, frame.layer, units);
      if (this.cursor?.map === map) drawCursor(pen, this.cursor);
      drawLabels(pen, layers, units);
    });
  }

  // Returns a cleared context with the sizes of its canvas in CSS pixels, or null if the canvas is hidden.
  pen(canvas) {
    const width = canvas.parentNode.clientWidth, height = this.layers * ROW + BOTTOM;
    if (!width) return null;
    const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    return { context, width, height, style: getComputedStyle(canvas) };
  }

  cellAt(event, map) {
    const box = this.canvases[map].getBoundingClientRect();
    const unit = Math.floor((event.clientX - box.left - LEFT) / ((box.width - LEFT) / this.units));
    const layer = Math.floor((event.clientY - box.top) / ROW);
    const isInside = unit >= 0 && unit < this.units && layer >= 0 && layer < this.layers;
    return isInside ? { map, layer, unit } : null;
  }

  pressKey(event, map) {
    const step = STEPS[event.key];
    if (!step) return;
    const { cursor } = this;
    this.moveCursor(cursor?.map !== map ? { map, layer: this.firstLayer(), unit: 0 } : {
      map,
      layer: clamp(cursor.layer + step[0], 0, this.layers - 1),
      unit: clamp(cursor.unit + step[1], 0, this.units - 1),
    });
    event.preventDefault();
  }

  moveCursor(cursor) {
    if (JSON.stringify(cursor) === JSON.stringify(this.cursor)) return;
    this.cursor = cursor;
    this.redraw();
  }
}

function colourIn(colours, [low, high], value) {
  return mixColours(colours, (value - low) / (high - low));
}

function drawCells({ context, cell }, rows, colourOf) {
  rows.forEach((row, layer) => row.forEach((value, unit) => {
    context.fillStyle = colourOf(value);
    context.fillRect(LEFT + unit * cell, layer * ROW, cellWidth(cell), ROW - 1);
  }));
}

// Wide cells have a gap between them.
function cellWidth(cell) {
  return cell > 3 ? cell - 1 : cell;
}

function drawFrame({ context, cell, style }, layer, units) {
  context.strokeStyle = style.color;
  context.strokeRect(LEFT - 0.5, layer * ROW - 0.5, units * cell, ROW);
}

function drawCursor({ context, cell, style }, { layer, unit }) {
  context.strokeStyle = style.color;
  context.lineWidth = 2;
  context.strokeRect(LEFT + unit * cell, layer * ROW, cellWidth(cell), ROW - 1);
}

function drawLabels({ context, cell, height, style }, layers, units) {
  context.fillStyle = style.color;
  context.font = `10px ${style.fontFamily}`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let layer = 0; layer < layers; layer += LAYERS_PER_LABEL)
    context.fillText(String(layer), LEFT - 6, layer * ROW + ROW / 2);
  context.textAlign = "center";
  const step = 2 ** Math.max(0, Math.ceil(Math.log2(LABEL_PX / cell)));
  for (let unit = 0; unit < units; unit += step) context.fillText(String(unit), LEFT + (unit + 0.5) * cell, height - 7);
}
