import assert from "node:assert/strict";
import { test } from "node:test";

import { addressOf, comparedOf, runOf } from "#ui/finetune/runs/address.js";

const ID = "123e4567-e89b-12d3-a456-426614174000";

test("an address opens one thing, and keeps other parameters", () => {
  const page = `https://host/studio/?keep=1&run=${ID}&adapter=x`;
  assert.equal(addressOf(page, "adapter", ID), `https://host/studio/?keep=1&adapter=${ID}`);
  assert.equal(addressOf(page, "run", ""), "https://host/studio/?keep=1");
  assert.equal(runOf(addressOf(page, "run", ID)), ID);
  assert.equal(runOf("https://host/?run=../../etc"), "");
  assert.equal(runOf("https://host/"), "");
});

test("an address names the runs of a comparison", () => {
  const other = ID.replace("1", "2");
  const page = addressOf(`https://host/?run=${ID}`, "compare", `${ID}.${other}`);
  assert.equal(page, `https://host/?compare=${ID}.${other}`);
  assert.deepEqual(comparedOf(page), [ID, other]);
  assert.deepEqual(comparedOf(`https://host/?compare=${ID}.${ID}.x`), [ID]);
  assert.deepEqual(comparedOf("https://host/"), []);
});
