import assert from "node:assert/strict";
import { test } from "node:test";

import { unitColours } from "#ui/routing/panel/colours.js";

test("up to eight units have a colour each, whether they occur or not", () => {
  assert.deepEqual(unitColours([5, 0, 9]), [0, 1, 2]);
  assert.deepEqual(unitColours([0, 0, 0, 0, 0, 0, 0, 1]), [0, 1, 2, 3, 4, 5, 6, 7]);
});

test("of more units, the seven most frequent have seven colours and all others are grey", () => {
  const counts = Array.from({ length: 64 }, (_, unit) => (unit * 37) % 64), colours = unitColours(counts);
  const first = counts.map((_, unit) => unit).sort((a, b) => counts[b] - counts[a]).slice(0, 7);
  assert.deepEqual(first.map((unit) => colours[unit]).sort(), [0, 1, 2, 3, 4, 5, 6]);
  assert.equal(colours.filter((colour) => colour === 7).length, 64 - 7);
});

test("units that do not occur are grey, and ties go to the lowest number", () => {
  const counts = new Array(9).fill(0);
  assert.deepEqual(unitColours(counts), new Array(9).fill(7));
  assert.deepEqual(unitColours(new Array(9).fill(1)), [0, 1, 2, 3, 4, 5, 6, 7, 7]);
});

test("units keep their colours when they swap ranks", () => {
  const counts = new Array(64).fill(0);
  Object.assign(counts, { 3: 9, 10: 8, 17: 7 }); // all of them would have colour 3
  const colours = unitColours(counts);
  assert.deepEqual([colours[3], colours[10], colours[17]], [3, 4, 5]);
  Object.assign(counts, { 3: 7, 17: 9 });
  assert.deepEqual(unitColours(counts), colours);
});
