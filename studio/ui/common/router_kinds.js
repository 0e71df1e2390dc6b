// Names of the kinds of routers for people. A trace and the documentation of models call them MoA and MoE.

const NAMES = new Map([["MoA", "Attention experts"], ["MoE", "Feed-forward experts"]]);
const SHORT = new Map([["MoA", "Attention"], ["MoE", "Feed-forward"]]);

export function kindName(kind) {
  return NAMES.get(kind) ?? kind;
}

// For the heads of columns.
export function shortKindName(kind) {
  return SHORT.get(kind) ?? kind;
}
