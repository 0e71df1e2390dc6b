"""Prints how the starter routes held-out text: load of the replicas and mutual information with the domain.

    python -m tests.benchmarks.routing_table [FOLDER]     # one .txt file a domain; tests/data/held_out by default
    python -m tests.benchmarks.routing_table --slots      # counts broken slot sets on 100,000 random tokens, in bf16

Load is a replica's share of the tokens (0.25 is even). NMI is the mutual information of replica and domain, divided by
the mean of their entropies: 0 says nothing about the domain, 1 tells it exactly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jetmoe import RoutingRecorder
from jetmoe.routers import CHUNK
from studio.backend.models import starter

HELD_OUT = Path(__file__).parents[1] / "data" / "held_out"


@dataclass(frozen=True)
class RoutingTable:
    """`load [L, N, m]`, `nmi [L, N]`, and how many of the T * L * N slot sets were split over several replicas."""

    load: np.ndarray
    nmi: np.ndarray
    tokens: dict[str, int]
    broken: int


def routing_table(
    path: Path, corpus: Path = HELD_OUT, dtype: torch.dtype = torch.bfloat16, most: int | None = None
) -> RoutingTable:
    """Routes every text of a folder through the model in `path`, as many tokens of each, `most` of them, and counts."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    tokens = {name: ids[:most] for name, ids in starter.domain_tokens(corpus, tokenizer, whole=1).items()}
    replicas, broken = zip(*(_replicas(model, ids) for ids in tokens.values()), strict=True)  # of [L, N, T]
    domains = np.repeat(np.arange(len(tokens)), [len(ids) for ids in tokens.values()])  # [T]
    chosen = np.concatenate(replicas, axis=2)
    m = max(model.config.groups) + 1
    joint = np.stack([(chosen[..., domains == domain, None] == np.arange(m)).sum(2) for domain in range(len(tokens))])
    joint = joint.transpose(1, 2, 3, 0) / chosen.shape[2]  # [L, N, m, domains]
    return RoutingTable(joint.sum(-1), mutual_information(joint), {k: len(v) for k, v in tokens.items()}, sum(broken))


@torch.inference_mode()
def _replicas(model, token_ids: torch.Tensor) -> tuple[np.ndarray, int]:
    """The replica of each token `[L, N, T]`, and how many slot sets were broken."""
    chosen = []
    for part in token_ids.split(CHUNK):
        with RoutingRecorder(model, capacity=len(part)) as recorder:
            model.model(part[None], use_cache=False)
        trace = recorder.trace(part.tolist(), [""] * len(part), is_prompt=True)
        chosen.append(trace.groups[trace.experts])
    groups = np.concatenate(chosen, axis=2)  # [L, N, T, K]
    return groups[..., 0], int((groups != groups[..., :1]).any(-1).sum())


def mutual_information(joint: np.ndarray) -> np.ndarray:
    """Normalised mutual information `[...]` of joint distributions `[..., rows, columns]`."""
    rows, columns = entropy(joint.sum(-1)), entropy(joint.sum(-2))
    both = entropy(joint.reshape(*joint.shape[:-2], -1))
    return (rows + columns - both) / ((rows + columns) / 2)


def entropy(distribution: np.ndarray) -> np.ndarray:
    return -(distribution * np.log(np.where(distribution > 0, distribution, 1.0))).sum(-1)


def markdown(table: RoutingTable) -> str:
    lines = ["| layer | MoA load | MoA NMI | MoE load | MoE NMI |", "|--:|:-:|--:|:-:|--:|"]
    for layer, (load, nmi) in enumerate(zip(table.load, table.nmi, strict=True)):
        cells = [f"{load[kind].min():.2f} to {load[kind].max():.2f} | {nmi[kind]:.2f}" for kind in range(2)]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    span = f"{table.load.min():.3f} to {table.load.max():.3f}"
    lines.append(f"\n{sum(table.tokens.values())} tokens ({', '.join(f'{k} {v}' for k, v in table.tokens.items())}).")
    lines.append(f"Load on all routers: {span}. Slot sets broken: {table.broken}.")
    return "\n".join(lines)


def broken_slot_sets(path: Path, count: int = 100_000) -> int:
    """On random tokens, which are further from the fitted text than anything a person types."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    tokens = torch.randint(model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    return _replicas(model, tokens)[1]


if __name__ == "__main__":
    if sys.argv[1:] == ["--slots"]:
        print(f"Slot sets broken on 100,000 tokens and 60 routers: {broken_slot_sets(starter.build())}")
    else:
        print(markdown(routing_table(starter.build(), *(Path(folder) for folder in sys.argv[1:]))))
