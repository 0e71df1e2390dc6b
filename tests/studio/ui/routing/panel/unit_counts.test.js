import assert from "node:assert/strict";
import { test } from "node:test";

import { Trace } from "#ui/routing/panel/trace.js";
import { sortedBy, unitCounts } from "#ui/routing/panel/unit_counts.js";

import { encode, HEAD, randomTokens } from "./traces.js";

test("rows are sorted by a column, then by number", () => {
  const rows = [[0, 1, 0.2], [1, 3, 0.1], [2, 1, 0.5], [3, 0, 0.2]].map(([unit, strongest, load]) =>
    ({ unit, strongest, load }));
  const order = (column) => sortedBy(rows, column).map(({ unit }) => unit);
  assert.deepEqual(order("strongest"), [1, 0, 2, 3]);
  assert.deepEqual(order("load"), [2, 0, 3, 1]);
  assert.deepEqual(order("unit"), [0, 1, 2, 3]);
});

test("a row has the counts of its unit", () => {
  const trace = new Trace();
  trace.reset("a", HEAD);
  trace.append(0, encode(randomTokens(50)));
  const rows = unitCounts(trace, "answer", 1, 0, true);
  assert.deepEqual(rows.map(({ selected }) => selected), trace.countSelected("answer", 1, 0));
  assert.deepEqual(rows.map(({ load }) => load), [...trace.load("answer", 1, 0, true)]);
  assert.equal(rows.reduce((sum, { strongest }) => sum + strongest, 0), 46);
  assert.equal(unitCounts(trace, "answer", 1, 0, false)[0].selected, undefined);
});
