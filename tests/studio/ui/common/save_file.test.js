import assert from "node:assert/strict";
import { test } from "node:test";

import { chartRows } from "#ui/common/charts/save_chart.js";
import { csv } from "#ui/common/save_file.js";

test("cells are quoted, and none is a formula", () => {
  assert.equal(csv([["a,b", 'say "x"', "=1+1"], [1.5, NaN, -2]]), '"a,b","say ""x""",\'=1+1\r\n1.5,,-2\r\n');
});

test("the numbers of a chart have a row for each step of any curve", () => {
  const curves = [
    { name: "loss", points: { x: [1, 2], y: [3, 2] } }, { name: "eval", points: { x: [2, 4], y: [5, 6] } },
  ];
  assert.deepEqual(chartRows(curves), [["Step", "loss", "eval"], [1, 3, NaN], [2, 2, 5], [4, NaN, 6]]);
});
