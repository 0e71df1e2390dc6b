// The calibration plot: accuracy by confidence, with larger points for more predictions. The diagonal is ideal.

import { axes } from "../../common/charts/axes.js";
import { createScale } from "../../common/charts/scale.js";
import { svg } from "../../common/dom.js";
import { formatNumber, percent } from "../../common/numbers.js";

const WIDTH = 330, HEIGHT = 317;
const BOX = { left: 50, right: 310, top: 12, bottom: 272 };
const TICKS = [0, 0.25, 0.5, 0.75, 1];
const SMALLEST = 3, LARGEST = 11; // radius of a point

// `figure` has the points as [confidence, accuracy, size] in its data, and the name of the vertical axis.
export function drawCalibration(figure) {
  const { calibration, accuracy } = figure.dataset;
  const across = createScale(0, 1, BOX.left, BOX.right), down = createScale(0, 1, BOX.bottom, BOX.top);
  const label = `${accuracy[0].toUpperCase()}${accuracy.slice(1)} by confidence; the table has the same numbers`;
  const grid = axes(BOX, across, down, { rows: TICKS, columns: TICKS, text: percent, hasColumnLines: true });
  const points = JSON.parse(calibration), most = Math.max(...points.map(([, , size]) => size));
  figure.replaceChildren(svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    svg("g", { class: "ch-grid" }, ...grid),
    svg("line", { class: "ev-ideal", x1: BOX.left, y1: BOX.bottom, x2: BOX.right, y2: BOX.top }),
    ...points.flatMap((point) => pointNodes(point, most, across, down)),
    ...axisTitles(accuracy)));
}

function pointNodes([confidence, accuracy, size], most, across, down) {
  const x = across.place(confidence).toFixed(1), y = down.place(accuracy).toFixed(1);
  const r = (SMALLEST + (LARGEST - SMALLEST) * Math.sqrt(size / most)).toFixed(1);
  const text = `${formatNumber(size)} at ${percent(confidence, 1)}: ${percent(accuracy, 1)}`;
  return [
    svg("line", { class: "ev-gap", x1: x, y1: y, x2: x, y2: down.place(confidence).toFixed(1) }),
    svg("circle", { cx: x, cy: y, r }, svg("title", {}, text)),
  ];
}

function axisTitles(accuracy) {
  const x = (BOX.left + BOX.right) / 2, y = (BOX.top + BOX.bottom) / 2;
  return [
    svg("text", { x, y: HEIGHT - 5, "text-anchor": "middle" }, "confidence"),
    svg("text", { transform: `translate(10 ${y}) rotate(-90)`, "text-anchor": "middle" }, accuracy),
  ];
}
