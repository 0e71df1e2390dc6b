import assert from "node:assert/strict";
import { test } from "node:test";

import { addressOf, runOf } from "#ui/finetune/runs/address.js";
import { distinctNames } from "#ui/finetune/runs/comparison.js";
import { isActive, queuePlace, stepText } from "#ui/finetune/runs/run_state.js";
import { duration, timeOf } from "#ui/finetune/runs/times.js";

const ID = "123e4567-e89b-12d3-a456-426614174000";

test("an address opens one thing, and keeps other parameters", () => {
  const page = `https://host/studio/?keep=1&run=${ID}&adapter=x`;
  assert.equal(addressOf(page, "adapter", ID), `https://host/studio/?keep=1&adapter=${ID}`);
  assert.equal(addressOf(page, "run", ""), "https://host/studio/?keep=1");
  assert.equal(runOf(addressOf(page, "run", ID)), ID);
  assert.equal(runOf("https://host/?run=../../etc"), "");
  assert.equal(runOf("https://host/"), "");
});

test("equal names get the start of their ids", () => {
  const runs = [{ id: "11111111aa", name: "a" }, { id: "22222222bb", name: "b" }, { id: "33333333cc", name: "a" }];
  assert.deepEqual(distinctNames(runs), ["a (11111111)", "b", "a (33333333)"]);
  assert.equal(new Set(distinctNames(runs)).size, 3);
});

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

test("states and steps of a run", () => {
  assert.deepEqual(["queued", "running", "done"].map((state) => isActive({ state })), [true, true, false]);
  assert.equal(queuePlace({ place: 2 }), "2nd in the queue");
  assert.equal(queuePlace({ place: null }), "in the queue");
  const texts = [[0, 0], [5, 0], [5, 80]].map(([step, steps]) => stepText({ step, steps }));
  assert.deepEqual(texts, ["", "step 5", "step 5 of 80"]);
});
