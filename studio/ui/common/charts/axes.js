// Grid lines and labels of two axes.

import { svg } from "../dom.js";
import { tickText } from "./scale.js";

const LABEL_GAP = 8, LABEL_DROP = 18, LABEL_HALF = 16;

// Returns SVG nodes: a line and a label for each tick of the vertical axis (`rows`), and a label, and a line if
// `hasColumnLines`, for each tick of the horizontal axis (`columns`). `box` is the plot's area, in the same units.
export function axes(box, across, down, { rows, columns, text = tickText, hasColumnLines = false }) {
  const { left, right, top, bottom } = box;
  const rowNodes = rows.flatMap((tick) => {
    const y = down.place(tick).toFixed(1);
    const label = { x: left - LABEL_GAP, y, dy: "0.32em", "text-anchor": "end" };
    return [svg("line", { x1: left, x2: right, y1: y, y2: y }), svg("text", label, text(tick))];
  });
  const columnNodes = columns.flatMap((tick) => {
    const x = across.place(tick).toFixed(1), y = bottom + LABEL_DROP;
    // The last label would extend beyond the plot.
    const isLast = x > right - LABEL_HALF && !hasColumnLines;
    const label = isLast ? { x: right + 10, y, "text-anchor": "end" } : { x, y, "text-anchor": "middle" };
    const lines = hasColumnLines ? [svg("line", { x1: x, x2: x, y1: top, y2: bottom })] : [];
    return [...lines, svg("text", label, text(tick))];
  });
  return [...rowNodes, ...columnNodes];
}
