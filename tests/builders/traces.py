"""Routing traces: random ones, and the one in an exported conversation."""

import base64

import numpy as np

from jetmoe.routing import RoutingTrace


def make_trace(tokens: int = 40, seed: int = 0, groups=(0, 0, 1, 1, 2, 2)) -> RoutingTrace:
    """A random trace of 3 layers, 2 kinds of router and 2 of 6 experts; a quarter of it is prompt."""
    random = np.random.default_rng(seed)
    experts = np.stack(
        [random.permutation(6)[:2] for _ in range(3 * 2 * tokens)],
    ).reshape(3, 2, tokens, 2)
    gates = random.dirichlet([1, 1], size=(3, 2, tokens))
    return RoutingTrace(
        token_ids=np.arange(tokens, dtype=np.int32),
        texts=tuple(f"t{i} " for i in range(tokens)),
        is_prompt=np.arange(tokens) < tokens // 4,
        experts=experts.astype(np.uint8),
        gates=np.sort(gates, axis=-1)[..., ::-1].astype(np.float16).copy(),
        entropy=random.uniform(0, np.log(6), size=(3, 2, tokens)).astype(np.float16),
        kinds=("MoA", "MoE"),
        groups=np.array(groups, dtype=np.uint8),
    )


def exported_trace(document: dict) -> RoutingTrace:
    return RoutingTrace.from_bytes(base64.b64decode(document["turns"][-1]["answer"]["trace"]))
