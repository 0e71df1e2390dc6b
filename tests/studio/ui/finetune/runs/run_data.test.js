import assert from "node:assert/strict";
import { test } from "node:test";

import { RunData } from "#ui/finetune/runs/run_data.js";

function dataOf(events) {
  const data = new RunData("x");
  data.add(events.map(([kind, step, values], i) => ({ seq: i + 1, kind, step, values })));
  return data;
}

test("events become series, once each", () => {
  const events = [
    { seq: 1, kind: "log", step: 1, values: { loss: 3, tok_s: 100 } },
    { seq: 2, kind: "eval", step: 1, values: { eval_loss: 3.1 } },
    { seq: 3, kind: "log", step: 2, values: { loss: 2 } },
  ];
  const data = new RunData("x");
  data.add(events);
  data.add(events.slice(1));
  assert.deepEqual(data.series.loss, { x: [1, 2], y: [3, 2] });
  assert.deepEqual(data.series.tok_s, { x: [1], y: [100] });
  assert.deepEqual(data.series.eval_loss, { x: [1], y: [3.1] });
  assert.deepEqual([data.lastSeq, data.version, data.logged], [3, 0, { loss: 2 }]);
});

test("a resumed run overwrites what came after its checkpoint", () => {
  const steps = [[1, 3], [2, 2], [3, 9], [2, 1.5], [3, 1], [4, 0.5], [4, 0.4]];
  const data = dataOf(steps.map(([step, loss]) => ["log", step, { loss }]));
  // The plain way: of all events, the last one of each step.
  const last = new Map(steps);
  assert.deepEqual(data.series.loss, { x: [...last.keys()], y: [...last.values()] });
  assert.ok(data.version > 0, "tables know that rows have gone");
  const routed = dataOf([0, 20, 40, 20].map((step) => ["routing", step, { js: step, load: [] }]));
  assert.deepEqual(routed.routings.map(({ step }) => step), [0, 20]);
  assert.deepEqual(routed.series.js.x, [0, 20]);
});

test("only time that the run ran is counted", () => {
  const data = dataOf([["resumed", 3, { ran_s: 40 }], ["resumed", 5, { ran_s: 20 }], ["resumed", 5, {}]]);
  data.row = { started: null, ended: null };
  assert.equal(data.ran, 60);
  Object.assign(data, { row: { started: 1000, ended: null }, now: 1007 });
  assert.equal(data.ran, 67);
  data.row.ended = 1003;
  assert.equal(data.ran, 63);
});

test("values that are no numbers are gaps, and missing ones are no points", () => {
  const values = [{ loss: null }, { loss: "<img>" }, {}, undefined];
  const data = dataOf(values.map((each, i) => ["log", i + 1, each]));
  assert.deepEqual(data.series.loss, { x: [1, 2], y: [NaN, NaN] });
});

test("answers are kept by prompt and step", () => {
  const sample = (step, prompt, answer) => ["sample", step, { prompt, answer }];
  const data = dataOf([
    sample(0, "a", "one"), sample(0, "b", "two"), sample(20, "a", "three"), sample(100, "a", undefined),
    sample(20, "a", "four"), ["sample", 30, { prompt: 7 }],
  ]);
  assert.deepEqual(data.sampledSteps, [0, 20, 100]);
  assert.deepEqual([...data.samples.get("a")], [[0, "one"], [20, "four"], [100, ""]]);
  assert.equal(data.samples.size, 2);
});

test("setup, gradients and warnings", () => {
  const data = dataOf([
    ["audit", 0, { rows: [1], warnings: ["low", "odd"] }], ["warning", 1, { message: "odd" }],
    ["warning", 2, { message: "new" }], ["warning", 3, {}], ["audit", 3, { gradients: { routers: {} } }],
  ]);
  assert.deepEqual(data.audit.rows, [1]);
  assert.deepEqual(data.gradients, { routers: {} });
  assert.deepEqual(data.warnings, ["low", "odd", "new"]);
});

test("unknown kinds are ignored", () => {
  const data = dataOf([["checkpoint", 1, {}], ["constructor", 1, {}], ["__proto__", 1, {}], ["toString", 2, {}]]);
  assert.deepEqual([data.lastSeq, data.series.loss.x], [4, []]);
});

test("the parts of the preparation are known until the first step", () => {
  const parts = ["data", "trial", "baseline", "samples"];
  const events = ["data", "trial", "baseline"].map((part) =>
    ["preparing", 0, { part, parts, note: part === "trial" ? "measured by Check" : "" }]);
  const data = dataOf(events);
  assert.deepEqual([data.preparing.part, data.preparing.notes.trial], ["baseline", "measured by Check"]);
  assert.equal(dataOf([...events, ["eval", 0, { eval_loss: 2 }]]).preparing.part, "samples");
  assert.equal(dataOf([...events, ["log", 1, { loss: 2 }]]).preparing, null);
});
