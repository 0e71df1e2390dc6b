import assert from "node:assert/strict";
import { test } from "node:test";

import { keepChoices, readChoices } from "#ui/routing/panel/choices.js";

function storage() {
  const kept = new Map();
  return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
}

test("choices come back, each panel's own", () => {
  const kept = storage(), chosen = { layer: 3, kind: 1, single: true, scope: "prompt", layers: 8 };
  keepChoices("answer", { ...chosen, other: 7 }, kept);
  assert.deepEqual([readChoices("answer", kept), readChoices("prompt", kept)], [chosen, {}]);
});

test("what another page wrote is left out", () => {
  for (const text of ["{", "null", "[7]", '{"layer": "3", "single": 1}'])
    assert.deepEqual(readChoices("answer", { getItem: () => text }), {});
});

test("a full storage is no error", (t) => {
  t.mock.method(console, "info", () => {});
  keepChoices("answer", {}, { setItem: () => { throw new DOMException("full", "QuotaExceededError"); } });
});
