import assert from "node:assert/strict";
import { test } from "node:test";

import { wordDifferences } from "#ui/finetune/runs/word_differences.js";

const newWords = (base, text) => wordDifferences(base, text).filter(([, isNew]) => isNew).map(([part]) => part);

test("the words that are not in the other text are new", () => {
  assert.deepEqual(newWords("a person of low rank", "a member of high rank"), ["member", "high"]);
  assert.deepEqual(newWords("", "all new"), ["all", "new"]);
  assert.deepEqual(newWords("x y", "y x").length, 1, "order counts");
});

test("the parts are the text, and whitespace is never new", () => {
  for (const text of ["", " ", "  two  words\n", "a\tb"]) {
    const parts = wordDifferences("other", text);
    assert.equal(parts.map(([part]) => part).join(""), text);
    assert.ok(parts.every(([part, isNew]) => part.trim() || !isNew));
  }
});

test("as few words are new as by trying every subsequence", () => {
  const words = ["a", "b", "c"];
  const wordsOf = (number) => Array.from({ length: 6 }, (_, i) => words[Math.floor(number / 3 ** i) % 3]);
  const isSubsequence = (part, all) => {
    let at = 0;
    for (const word of all) if (word === part[at]) at++;
    return at === part.length;
  };
  for (let number = 0; number < 729; number += 31) {
    const base = wordsOf(number), text = wordsOf(728 - number * 7 % 729);
    let longest = 0;
    for (let mask = 0; mask < 64; mask++) {
      const part = text.filter((_, i) => mask & (1 << i));
      if (part.length > longest && isSubsequence(part, base)) longest = part.length;
    }
    assert.equal(newWords(base.join(" "), text.join(" ")).length, text.length - longest, `${base} | ${text}`);
  }
});

test("very long texts are not compared", () => {
  const long = Array.from({ length: 401 }, (_, i) => `w${i}`).join(" ");
  assert.deepEqual(wordDifferences("a", long), [[long, false]]);
});
