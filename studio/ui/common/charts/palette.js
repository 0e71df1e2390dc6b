// Colours of heat maps: lists of hexadecimal colours from the lowest to the highest value.

import { clamp } from "../numbers.js";

const SEQUENTIAL = {
  light: ["#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b"],
  dark: ["#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
};
const DIVERGING = {
  light: ["#0072b2", "#9cc4de", "#f4f5f7", "#f2b48c", "#d55e00"],
  dark: ["#56b4e9", "#2b5c7c", "#1d2431", "#7c451f", "#f08a3c"],
};

// For values from 0 up; the lowest are close to the background, but not to that of an empty cell.
export function sequential(isDark) {
  return isDark ? SEQUENTIAL.dark : SEQUENTIAL.light;
}

// Returns the load of the last colour: twice to four times the chance, so that loads near the chance can be told apart.
// `highest` is the highest load.
export function lastLoad(highest, units) {
  return Math.min(1, clamp(highest, 2 / units, 4 / units));
}

// Returns the label of the last colour, which also stands for higher values.
export function lastLabel(last, highest) {
  return highest > last ? `≥ ${last.toFixed(2)}` : last.toFixed(2);
}

// For values below and above 0, which is close to the background.
export function diverging(isDark) {
  return isDark ? DIVERGING.dark : DIVERGING.light;
}

// Returns the colour at a share of the way through the list.
export function mixColours(colours, share) {
  const place = Math.max(0, Math.min(1, share)) * (colours.length - 1);
  const index = Math.min(Math.floor(place), colours.length - 2);
  const [low, high] = [colours[index], colours[index + 1]].map(channels);
  return `rgb(${low.map((channel, i) => Math.round(channel + (place - index) * (high[i] - channel))).join(",")})`;
}

export function gradient(colours) {
  return `linear-gradient(90deg, ${colours.join(",")})`;
}

function channels(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}
