import assert from "node:assert/strict";
import { test } from "node:test";

import { clamp, compareNumbers, formatNumber, ordinal, percent } from "#ui/common/numbers.js";

test("numbers keep four digits, large ones all before the point", () => {
  const numbers = [0.00002, 0.12345678, 12345.6, null, undefined, NaN, 3, 1234567, 0, -0.5, 999.96, "text"];
  assert.deepEqual(numbers.map(formatNumber),
    ["2.00e-5", "0.1235", "12,346", "–", "–", "–", "3", "1,234,567", "0", "-0.5", "1000", "text"]);
});

test("shares are per cent", () => {
  assert.deepEqual([percent(0.5), percent(0.1234, 1), percent(1)], ["50 %", "12.3 %", "100 %"]);
});

test("places in a queue", () => {
  assert.deepEqual([1, 2, 3, 4, 11, 12, 22, 113].map(ordinal),
    ["1st", "2nd", "3rd", "4th", "11th", "12th", "22nd", "113th"]);
});

test("order and limits", () => {
  assert.deepEqual([10, 9, 1].sort(compareNumbers), [1, 9, 10]);
  assert.deepEqual([-1, 2, 9].map((value) => clamp(value, 0, 5)), [0, 2, 5]);
});
