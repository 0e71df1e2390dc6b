import assert from "node:assert/strict";
import { test } from "node:test";

import { diverging, gradient, lastLabel, lastLoad, mixColours, sequential } from "#ui/common/charts/palette.js";

test("a colour is mixed of its two neighbours", () => {
  const colours = ["#000000", "#ff8000", "#ffffff"];
  assert.deepEqual([0, 0.25, 0.5, 0.75, 1].map((share) => mixColours(colours, share)),
    ["rgb(0,0,0)", "rgb(128,64,0)", "rgb(255,128,0)", "rgb(255,192,128)", "rgb(255,255,255)"]);
});

test("shares beyond the ends have the colours of the ends", () => {
  const colours = ["#010203", "#0a0b0c"];
  assert.equal(mixColours(colours, -3), "rgb(1,2,3)");
  assert.equal(mixColours(colours, 7), "rgb(10,11,12)");
});

test("the last colour stands for two to four times the chance", () => {
  const ends = [[0, 8], [0.2, 8], [0.3, 8], [0.9, 8], [0.9, 2], [0.125, 64], [0.125, 256]];
  assert.deepEqual(ends.map(([highest, units]) => lastLoad(highest, units)),
    [0.25, 0.25, 0.3, 0.5, 1, 0.0625, 0.015625]);
  assert.deepEqual([lastLabel(0.5, 0.4), lastLabel(0.5, 0.5), lastLabel(0.0625, 0.125)], ["0.50", "0.50", "≥ 0.06"]);
});

test("the lowest value is close to the background", () => {
  const channels = (colour) => mixColours([colour, colour], 0).match(/\d+/g).map(Number);
  const lightness = (colour) => channels(colour).reduce((sum, channel) => sum + channel);
  const [light, dark] = [sequential(false), sequential(true)];
  assert.ok(lightness(light[0]) > lightness(light.at(-1)) && lightness(dark[0]) < lightness(dark.at(-1)));
  assert.ok(lightness(light[0]) > 740, "almost white, and no loud colour");
  assert.ok(lightness(diverging(false)[2]) > 700 && lightness(diverging(true)[2]) < 150, "no change, in the middle");
  assert.equal(gradient(["#111111", "#222222"]), "linear-gradient(90deg, #111111,#222222)");
});
