// Words of a text that are not in another text.

// Longer texts are not compared: the time grows with the product of their lengths.
const MOST_WORDS = 400;

// Returns the text as [part, isNew] pairs, where words outside the longest common subsequence with `base` are new.
export function wordDifferences(base, text) {
  const words = base.split(/\s+/).filter(Boolean), parts = text.split(/(\s+)/).filter(Boolean);
  const newWords = parts.filter((part) => part.trim());
  if (words.length > MOST_WORDS || newWords.length > MOST_WORDS) return [[text, false]];
  const isNew = outsideCommon(words, newWords);
  let word = 0;
  return parts.map((part) => [part, Boolean(part.trim()) && isNew[word++]]);
}

// Returns for each item of `items` whether it is outside the longest common subsequence with `base`.
function outsideCommon(base, items) {
  const lengths = commonLengths(base, items), isOutside = [];
  for (let i = 0, j = 0; j < items.length; ) {
    if (i < base.length && base[i] === items[j]) {
      isOutside.push(false);
      i++;
      j++;
    } else if (i < base.length && lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else {
      isOutside.push(true);
      j++;
    }
  }
  return isOutside;
}

// Returns the length of the longest common subsequence of all pairs of endings, by their first items.
function commonLengths(base, items) {
  const lengths = Array.from({ length: base.length + 1 }, () => new Uint16Array(items.length + 1));
  for (let i = base.length - 1; i >= 0; i--)
    for (let j = items.length - 1; j >= 0; j--)
      lengths[i][j] = base[i] === items[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
  return lengths;
}
