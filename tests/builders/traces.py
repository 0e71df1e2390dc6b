"""Routing traces: random ones, and the one in an exported conversation."""

import base64

import numpy as np

from jetmoe.routing import RoutingTrace


def make_trace(
    tokens: int = 40, seed: int = 0, groups=(0, 0, 1, 1, 2, 2), K: int = 2, kinds=("MoA", "MoE"), held: float = 1.0
) -> RoutingTrace:
    """A random trace of 3 layers; a quarter of it is prompt.

    Args:
        groups: of the experts; the identity if it is a number of experts.
        K: experts per token.
        held: sum of the gates; less than 1 if they are probabilities.
    """
    groups = range(groups) if isinstance(groups, int) else groups
    E, N = len(groups), len(kinds)
    random = np.random.default_rng(seed)
    experts = np.stack([random.permutation(E)[:K] for _ in range(3 * N * tokens)]).reshape(3, N, tokens, K)
    gates = held * random.dirichlet(np.ones(K), size=(3, N, tokens))
    return RoutingTrace(
        token_ids=np.arange(tokens, dtype=np.int32),
        texts=tuple(f"t{i} " for i in range(tokens)),
        is_prompt=np.arange(tokens) < tokens // 4,
        experts=experts.astype(np.uint8),
        gates=np.sort(gates, axis=-1)[..., ::-1].astype(np.float16).copy(),
        entropy=random.uniform(0, np.log(E), size=(3, N, tokens)).astype(np.float16),
        kinds=kinds,
        gates_sum_to_one=held == 1,
        groups=np.array(groups, dtype=np.uint8),
    )


def exported_trace(document: dict) -> RoutingTrace:
    return RoutingTrace.from_bytes(base64.b64decode(document["turns"][-1]["answer"]["trace"]))
