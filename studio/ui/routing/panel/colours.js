// The colours of a router's experts or groups (`EXPERT_COLOURS` in `studio/ui/page/theme.py`). Up to eight have one
// each. Of more, the seven that are the strongest most often have one, and the last colour, grey, is for all others.

import { compareNumbers } from "../../common/numbers.js";

const COLOURS = 8, GREY = COLOURS - 1;

export const COLOURED = GREY; // units with a colour, if there are more units than colours

export function colourClass(colour) {
  return `rp-u${colour}`;
}

export function hasColourEach(units) {
  return units <= COLOURS;
}

// Returns the number of each unit's colour. `counts` says in how many tokens each unit is the strongest.
export function unitColours(counts) {
  if (hasColourEach(counts.length)) return counts.map((_, unit) => unit);
  const colours = counts.map(() => GREY), free = new Set(Array.from({ length: GREY }, (_, colour) => colour));
  // In the order of their numbers, so that two units that swap ranks keep their colours.
  for (const unit of mostFrequent(counts, GREY).sort(compareNumbers)) {
    colours[unit] = nextFree(free, unit % GREY);
    free.delete(colours[unit]);
  }
  return colours;
}

function nextFree(free, wanted) {
  let colour = wanted;
  while (!free.has(colour)) colour = (colour + 1) % GREY;
  return colour;
}

// Returns up to `most` units that occur, the most frequent first; ties go to the lowest id.
function mostFrequent(counts, most) {
  const units = counts.map((_, unit) => unit).filter((unit) => counts[unit] > 0);
  return units.sort((a, b) => counts[b] - counts[a] || a - b).slice(0, most);
}
