import assert from "node:assert/strict";
import { test } from "node:test";

import { linesOf, matching } from "#ui/finetune/runs/run_log.js";

test("lines end at line feeds and carriage returns, and empty ones are left out", () => {
  assert.deepEqual(linesOf("a\r\nb\n\n10 %\r20 %\n"), ["a", "b", "10 %", "20 %"]);
});

test("a filter finds lines with all words, in any case", () => {
  const lines = ["Loss 2.5 at step 1", "saved", "loss 2.4 at step 2"];
  assert.deepEqual(matching(lines, "LOSS step"), [lines[0], lines[2]]);
  assert.equal(matching(lines, " "), lines);
});
