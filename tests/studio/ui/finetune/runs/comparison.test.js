import assert from "node:assert/strict";
import { test } from "node:test";

import { distinctNames } from "#ui/finetune/runs/comparison.js";

test("equal names get the start of their ids", () => {
  const runs = [{ id: "11111111aa", name: "a" }, { id: "22222222bb", name: "b" }, { id: "33333333cc", name: "a" }];
  assert.deepEqual(distinctNames(runs), ["a (11111111)", "b", "a (33333333)"]);
  assert.equal(new Set(distinctNames(runs)).size, 3);
});
