import assert from "node:assert/strict";
import { test } from "node:test";

import { mergedRuns } from "#ui/finetune/runs/run_list.js";

test("changed rows keep their place, new ones come first, deleted ones go", () => {
  const known = [{ id: "c", step: 1 }, { id: "b", step: 1 }, { id: "a", step: 1 }];
  const answer = { whole: false, gone: ["b"], runs: [{ id: "d", step: 0 }, { id: "a", step: 2 }] };
  assert.deepEqual(mergedRuns(known, answer).map(({ id, step }) => `${id}${step}`), ["d0", "c1", "a2"]);
  assert.equal(mergedRuns(known, { whole: false, gone: [], runs: [] }), known);
  assert.deepEqual(mergedRuns(known, { whole: true, gone: [], runs: [] }), []);
});
