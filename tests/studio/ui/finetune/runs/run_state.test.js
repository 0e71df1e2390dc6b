import assert from "node:assert/strict";
import { test } from "node:test";

import { isActive, queuePlace, stepText } from "#ui/finetune/runs/run_state.js";

test("states and steps of a run", () => {
  assert.deepEqual(["queued", "running", "done"].map((state) => isActive({ state })), [true, true, false]);
  assert.equal(queuePlace({ place: 2 }), "2nd in the queue");
  assert.equal(queuePlace({ place: null }), "in the queue");
  const texts = [[0, 0], [5, 0], [5, 80]].map(([step, steps]) => stepText({ step, steps }));
  assert.deepEqual(texts, ["", "step 5", "step 5 of 80"]);
});
