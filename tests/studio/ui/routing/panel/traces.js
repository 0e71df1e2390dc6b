// Random routing as the server sends it, and the plain way to count it.

const FULL = 65535;

export const HEAD = {
  L: 3, N: 2, K: 2, E: 6, kinds: ["MoA", "MoE"], groups: [0, 0, 1, 1, 2, 2], prompt: 4, tied: true, gatesSumToOne: true,
};

// Returns the head of a model without ties and with one kind of router, whose gates are probabilities.
export function headOf(E, K) {
  const groups = Array.from({ length: E }, (_, expert) => expert);
  return { L: 3, N: 1, K, E, kinds: ["MoE"], groups, prompt: 4, tied: false, gatesSumToOne: false };
}

// Returns `count` tokens; experts and gates are indexed by token, layer, kind and slot.
export function randomTokens(count, seed = 1, head = HEAD) {
  const random = generator(seed);
  return Array.from({ length: count }, (_, t) => ({
    text: `t${t}`,
    entropy: grid(head, () => Math.floor(random() * FULL)),
    experts: grid(head, () => differentExperts(random, head)),
    gates: grid(head, () => (head.gatesSumToOne ? twoGates(random) : probabilities(random, head))),
  }));
}

// Returns tokens as the rows of a message.
export function encode(tokens) {
  const flat = (name) => tokens.map((token) => token[name]).flat(4);
  return {
    t: Buffer.from(JSON.stringify(tokens.map((token) => token.text))).toString("base64"),
    e: Buffer.from(Uint8Array.from(flat("experts"))).toString("base64"),
    g: base16(flat("gates")),
    h: base16(flat("entropy")),
  };
}

export function base16(numbers) {
  return Buffer.from(Uint16Array.from(numbers).buffer).toString("base64");
}

function unitsOf(head, isSingle) {
  return isSingle ? head.E : Math.max(...head.groups) + 1;
}

// Returns the sum of the gates of each unit.
export function gateSums(token, l, n, isSingle, head = HEAD) {
  const sums = new Array(unitsOf(head, isSingle)).fill(0);
  token.experts[l][n].forEach((expert, k) => (sums[isSingle ? expert : head.groups[expert]] += token.gates[l][n][k]));
  return sums;
}

// Returns each unit's share of the assignments of the tokens.
export function loadOf(tokens, l, n, isSingle, head = HEAD) {
  const experts = tokens.flatMap((token) => token.experts[l][n]);
  const units = experts.map((expert) => (isSingle ? expert : head.groups[expert]));
  const count = (unit) => units.filter((each) => each === unit).length;
  return Array.from({ length: unitsOf(head, isSingle) }, (_, unit) => count(unit) / units.length);
}

function grid({ L, N }, cell) {
  return Array.from({ length: L }, () => Array.from({ length: N }, cell));
}

function differentExperts(random, { E, K }) {
  const left = Array.from({ length: E }, (_, expert) => expert);
  return Array.from({ length: K }, () => left.splice(Math.floor(random() * left.length), 1)[0]);
}

// Descending, with a sum below 1.
function probabilities(random, { K }) {
  return Array.from({ length: K }, () => Math.floor((random() * 0.9 * FULL) / K)).sort((a, b) => b - a);
}

// Every third pair is tied.
function twoGates(random) {
  const first = random() < 1 / 3 ? 30_000 : Math.floor(random() * 60_000);
  return first === 30_000 ? [first, first] : [first, FULL - first];
}

function generator(seed) {
  let state = seed;
  return () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return state / 2 ** 31;
  };
}
