// A chart as an SVG, PNG or CSV file.

import { el, setAttributes, svg } from "../dom.js";
import { compareNumbers } from "../numbers.js";
import { csv, saveBlob, saveText } from "../save_file.js";
import { lowerBound } from "./scale.js";

const HEAD = 46, SCALE = 2; // pixels above the plot, and pixels of a PNG for each of the page
const FONT = "system-ui, sans-serif";
const LEGEND_PX = 16, LETTER_PX = 7;
const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "opacity"];

// Returns the buttons that save a chart.
export function saveButtons(chart) {
  const kinds = [["PNG", savePng], ["SVG", saveSvg], ["CSV", saveCsv]];
  return el("span", { class: "ch-save" }, ...kinds.map(([kind, save]) => {
    const label = `Save ${chart.title} as ${kind}`;
    const node = el("button", { type: "button", class: "ch-link", "aria-label": label }, kind);
    node.addEventListener("click", () => save(chart));
    return node;
  }));
}

function saveCsv(chart) {
  saveText(csv(chartRows(chart.curves)), `${chart.name}.csv`, "text/csv");
}

// Returns the numbers of curves `{ name, points: { x, y } }` as rows, with the names first.
export function chartRows(curves) {
  const steps = [...new Set(curves.flatMap(({ points }) => points.x))].sort(compareNumbers);
  const value = ({ x, y }, step) => (x[lowerBound(x, step)] === step ? y[lowerBound(x, step)] : NaN);
  return [["Step", ...curves.map(({ name }) => name)],
    ...steps.map((step) => [step, ...curves.map(({ points }) => value(points, step))])];
}

function saveSvg(chart) {
  saveText(new XMLSerializer().serializeToString(drawing(chart)), `${chart.name}.svg`, "image/svg+xml");
}

async function savePng(chart) {
  const picture = drawing(chart), image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(picture))}`;
  await image.decode();
  const [width, height] = ["width", "height"].map((name) => SCALE * Number(picture.getAttribute(name)));
  const canvas = el("canvas", { width, height });
  canvas.getContext("2d").drawImage(image, 0, 0, width, height);
  canvas.toBlob((blob) => saveBlob(blob, `${chart.name}.png`));
}

// Returns the plot with its title and legend, and with the colours of the page in it.
function drawing(chart) {
  const { plot } = chart, width = plot.clientWidth, height = plot.clientHeight + HEAD;
  const page = getComputedStyle(plot), background = plainColour(pageColour(plot)), text = plainColour(page.color);
  const copy = plot.cloneNode(true);
  inlineStyles(plot, copy);
  setAttributes(copy, { y: HEAD, width, height: plot.clientHeight });
  const font = { "font-family": FONT, fill: text };
  return svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` },
    svg("rect", { width, height, fill: background }),
    svg("text", { x: 12, y: 18, "font-size": 14, "font-weight": 600, ...font }, chart.title),
    ...legend(chart.curves, font), copy);
}

function legend(curves, font) {
  let x = 12;
  return curves.flatMap((curve) => {
    const start = x, colour = plainColour(getComputedStyle(curve.line).stroke);
    x += LEGEND_PX + 22 + LETTER_PX * curve.name.length;
    return [svg("rect", { x: start, y: 32, width: LEGEND_PX, height: 4, fill: colour }),
      svg("text", { x: start + LEGEND_PX + 6, y: 38, "font-size": 12, ...font }, curve.name)];
  });
}

// A file has no style sheet, so each node gets the look that it has on the page.
function inlineStyles(node, copy) {
  const look = getComputedStyle(node);
  for (const name of KEPT) {
    const value = look.getPropertyValue(name);
    copy.setAttribute(name, name === "fill" || name === "stroke" ? plainColour(value) : value);
  }
  if (node.tagName === "text") setAttributes(copy, { "font-size": look.fontSize, "font-family": FONT });
  for (const name of ["class", "style", "tabindex", "role", "aria-label"]) copy.removeAttribute(name);
  [...node.children].forEach((child, i) => inlineStyles(child, copy.children[i]));
}

function pageColour(node) {
  for (let each = node; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!/, 0\)$|^transparent$/.test(colour)) return colour;
  }
  return "#ffffff";
}

// Returns a colour as programs other than browsers read it: mixed colours have a notation of their own.
function plainColour(colour) {
  if (colour === "none") return colour;
  const pixel = el("canvas", { width: 1, height: 1 }).getContext("2d");
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = pixel.getImageData(0, 0, 1, 1).data;
  return alpha === 255 ? `rgb(${red},${green},${blue})` : `rgba(${red},${green},${blue},${(alpha / 255).toFixed(3)})`;
}
