import assert from "node:assert/strict";
import { test } from "node:test";

import { duration, timeOf } from "#ui/finetune/runs/times.js";

test("durations", () => {
  assert.deepEqual([0, 59.6, 61, 7300, null, -1, undefined].map(duration),
    ["0 s", "1 min 0 s", "1 min 1 s", "2 h 1 min", "–", "–", "–"]);
});

test("times of today have no date", () => {
  const now = Date.now() / 1000;
  assert.match(timeOf(now), /^today \d/);
  assert.match(timeOf(now, ""), /^\d/);
  assert.match(timeOf(now - 3 * 365 * 86400), /20\d\d/);
});
