import assert from "node:assert/strict";
import { test } from "node:test";

import { createScale, linearTicks, logTicks, lowerBound, nearest, tickText } from "#ui/common/charts/scale.js";

test("a linear scale maps its ends to its ends, and back", () => {
  const scale = createScale(10, 30, 0, 100);
  assert.deepEqual([10, 20, 30].map(scale.place), [0, 50, 100]);
  assert.deepEqual([0, 25, 100].map(scale.value), [10, 15, 30]);
  assert.equal(createScale(5, 5, 0, 100).place(5), 0, "an empty range has a place, too");
});

test("a log scale gives each power of ten the same room, and no place to zero", () => {
  const scale = createScale(0.01, 100, 400, 0, true);
  assert.deepEqual([0.01, 0.1, 1, 10, 100].map((value) => Math.round(scale.place(value))), [400, 300, 200, 100, 0]);
  assert.ok(!Number.isFinite(scale.place(0)) && Number.isNaN(scale.place(-1)));
});

test("ticks are round values inside the range", () => {
  assert.deepEqual(linearTicks(0, 1, 4), [0, 0.5, 1]);
  assert.deepEqual(linearTicks(-1, 1, 4), [-1, -0.5, 0, 0.5, 1]);
  assert.deepEqual(linearTicks(0.1, 0.3, 4), [0.1, 0.15, 0.2, 0.25, 0.3], "without the errors of sums");
  assert.deepEqual(linearTicks(1, 3, 8, true), [1, 2, 3], "steps have no halves");
  assert.deepEqual(linearTicks(7, 7, 4), [7]);
});

test("log ticks are 1, 2 and 5 times powers of ten, fewer over a long range", () => {
  assert.deepEqual(logTicks(0.9, 110), [1, 2, 5, 10, 20, 50, 100]);
  assert.deepEqual(logTicks(1e-5, 1), [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1]);
  assert.deepEqual(logTicks(1e-9, 1), [1e-9, 1e-7, 1e-5, 1e-3, 0.1]);
  assert.deepEqual(logTicks(2.1, 2.9), [2.2, 2.4, 2.6, 2.8], "a range without any has linear ticks");
});

test("labels of ticks", () => {
  assert.deepEqual([0, 0.25, 1500, 2e-4, 3e6, -0.5].map(tickText), ["0", "0.25", "1,500", "2e-4", "3e6", "-0.5"]);
});

test("searches find what a walk over all values finds", () => {
  for (let count = 0; count < 12; count++) {
    const sorted = Array.from({ length: count }, (_, i) => Math.floor((i * i) / 3));
    for (let value = -1; value < 40; value += 0.5) {
      const first = sorted.findIndex((each) => each >= value);
      assert.equal(lowerBound(sorted, value), first < 0 ? count : first);
      if (!count) continue;
      const distances = sorted.map((each) => Math.abs(each - value));
      assert.equal(distances[nearest(sorted, value)], Math.min(...distances), `${value} in ${sorted}`);
    }
  }
  assert.deepEqual([6, 0, 99, 3].map((value) => nearest([1, 5, 9], value)), [1, 0, 2, 0]);
});
