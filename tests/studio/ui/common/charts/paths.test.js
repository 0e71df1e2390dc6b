import assert from "node:assert/strict";
import { test } from "node:test";

import { curvePath, fullPath, smoothed, valueRange } from "#ui/common/charts/paths.js";
import { createScale } from "#ui/common/charts/scale.js";

const whole = (x, y) => ({ x, y, start: 0, end: x.length });
const points = (path) => [...path.matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)].map(([, x, y]) => [Number(x), Number(y)]);

test("smoothing is a weighted mean of all values so far", () => {
  assert.deepEqual(smoothed([0, 1], 0.5), [0, 2 / 3]);
  assert.deepEqual(smoothed([2, 2, NaN, 2], 0.9).map((value) => Math.round(value)), [2, 2, NaN, 2]);
  const y = Array.from({ length: 40 }, (_, i) => Math.sin(i * 7) * 3), weight = 0.8;
  smoothed(y, weight).forEach((value, last) => {
    const weights = y.slice(0, last + 1).map((_, i) => weight ** (last - i));
    const mean = weights.reduce((sum, each, i) => sum + each * y[i], 0) / weights.reduce((sum, each) => sum + each);
    assert.ok(Math.abs(value - mean) < 1e-12);
  });
});

test("a path has a gap where there is no number", () => {
  const across = createScale(0, 3, 0, 90), down = createScale(0, 2, 20, 0);
  assert.equal(fullPath(whole([0, 1, 2, 3], [1, NaN, 1, 1]), across, down), "M0.0 10.0M60.0 10.0L90.0 10.0");
  const log = createScale(0.1, 10, 20, 0, true);
  assert.equal(fullPath(whole([0, 1, 2], [1, 0, 1]), across, log), "M0.0 10.0M60.0 10.0", "zero has no place");
});

test("many points are drawn as the extremes of each pixel column", () => {
  const x = Array.from({ length: 50_000 }, (_, i) => i);
  const y = x.map((i) => (i === 31_234 ? 99 : i % 777 === 5 ? NaN : Math.sin(i) * (1 + (i % 13))));
  const width = 600, across = createScale(0, 50_000, 0, width), down = createScale(-100, 100, 200, 0);
  const thin = points(curvePath(whole(x, y), across, down, width));
  const full = points(fullPath(whole(x, y), across, down));
  assert.ok(full.length > 40_000 && thin.length <= 2 * (width + 2));

  // The plain way: all values by column.
  const columns = new Map();
  x.forEach((step, i) => {
    const column = Math.round(across.place(step));
    if (!Number.isNaN(y[i])) columns.set(column, [...(columns.get(column) ?? []), Number(down.place(y[i]).toFixed(1))]);
  });
  const drawn = new Map();
  for (const [column, top] of thin) drawn.set(column, [...(drawn.get(column) ?? []), top]);
  assert.deepEqual([...drawn.keys()], [...columns.keys()]);
  for (const [column, tops] of columns) {
    assert.equal(Math.min(...drawn.get(column)), Math.min(...tops), `the peak of column ${column}`);
    assert.equal(Math.max(...drawn.get(column)), Math.max(...tops), `the low of column ${column}`);
  }
});

test("few points are drawn one by one", () => {
  const x = [0, 1, 2], y = [3, 1, 2], across = createScale(0, 2, 0, 100), down = createScale(0, 4, 100, 0);
  assert.equal(curvePath(whole(x, y), across, down, 100), fullPath(whole(x, y), across, down));
  assert.deepEqual(points(curvePath({ x, y, start: 1, end: 3 }, across, down, 100)), [[50, 75], [100, 50]]);
});

test("a range has room around its values, and starts at zero where it is asked to", () => {
  const parts = [{ y: [NaN, 1, 3], start: 0, end: 3 }, { y: [100, 2], start: 1, end: 2 }];
  const [low, high] = valueRange(parts, false, false);
  assert.ok(low < 1 && low > 0.8 && high > 3 && high < 3.2);
  assert.equal(valueRange(parts, false, true)[0], 0);
  assert.ok(valueRange([{ y: [-1, 1], start: 0, end: 2 }], false, true)[0] < -1);
  assert.deepEqual(valueRange([{ y: [NaN], start: 0, end: 1 }], false, true), [0, 1]);
  assert.deepEqual(valueRange([{ y: [5], start: 0, end: 1 }], false, false), [4.5, 5.5]);
});

test("a log range leaves out what has no logarithm", () => {
  const [low, high] = valueRange([{ y: [-1, 0, 0.1, 10], start: 0, end: 4 }], true, false);
  assert.ok(low > 0.05 && low < 0.1 && high > 10 && high < 20);
  assert.deepEqual(valueRange([{ y: [2], start: 0, end: 1 }], true, false), [1, 4]);
  assert.deepEqual(valueRange([{ y: [0], start: 0, end: 1 }], true, false), [0.1, 1]);
});
