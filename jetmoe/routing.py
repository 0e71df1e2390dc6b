"""Router decisions: a `RoutingRecorder` records them in the model, a `RoutingTrace` stores them.

    with RoutingRecorder(model, capacity=4096) as recorder:
        model(input_ids)
    trace = recorder.trace(token_ids, texts, is_prompt)

Shape letters, used on every tensor line of the project:
    B batch, S sequence, T tokens (B * S), L layers, N router kinds, E experts, K experts per token, D hidden, R rank
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor
from transformers import PreTrainedModel

FORMAT = "jetmoe-routing-trace-1"
SUM_TO_ONE = "gates_sum_to_one"
"""Absent in older files, which hold traces of JetMoE only."""


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """The routing of T tokens through L layers of N routers, as immutable numpy arrays without padding.

    Attributes:
        token_ids: int32 `[T]`.
        texts: T strings, the text that each token adds; joined, they are the whole text. A token that ends inside a
            character adds "", and the token that completes the character adds it.
        is_prompt: bool `[T]`.
        experts: uint8 `[L, N, T, K]`, the selected experts, strongest first.
        gates: float16 `[L, N, T, K]`, their mixing weights.
        entropy: float16 `[L, N, T]`, the entropy of the softmax over all E experts, in nats.
        kinds: the N router kinds in order, `("MoA", "MoE")` for JetMoE, `("MoE",)` for OLMoE.
        groups: uint8 `[E]`, the group of each expert (the identity unless the model ties experts).
        gates_sum_to_one: whether the gates of a router sum to 1. Otherwise they are the probabilities of the selected
            experts, and their sum is the share of the probability that these experts hold.
        probs: float16 `[L, N, T, E]`, the softmax over all experts, or None if it was not recorded.
    """

    token_ids: np.ndarray
    texts: tuple[str, ...]
    is_prompt: np.ndarray
    experts: np.ndarray
    gates: np.ndarray
    entropy: np.ndarray
    kinds: tuple[str, ...]
    groups: np.ndarray
    gates_sum_to_one: bool = True
    probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        L, N, T, K = self.experts.shape
        if not (len(self.texts) == len(self.token_ids) == len(self.is_prompt) == T):
            raise ValueError(f"the trace has experts for {T} tokens but {len(self.texts)} texts")
        if self.gates.shape != (L, N, T, K) or self.entropy.shape != (L, N, T) or len(self.kinds) != N:
            raise ValueError("experts, gates, entropy and kinds of the trace disagree in shape")
        if self.probs is not None and self.probs.shape != (L, N, T, self.num_experts):
            raise ValueError(f"probs of the trace must have shape {(L, N, T, self.num_experts)}")
        if T and int(self.experts.max()) >= self.num_experts:
            raise ValueError(f"the trace has expert {int(self.experts.max())} but only {self.num_experts} experts")
        for array in (self.token_ids, self.is_prompt, self.experts, self.gates, self.entropy, self.groups, self.probs):
            if array is not None:
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, tokens: slice) -> RoutingTrace:
        """Return the trace of a slice of tokens; its arrays are views."""
        return replace(
            self,
            token_ids=self.token_ids[tokens],
            texts=self.texts[tokens],
            is_prompt=self.is_prompt[tokens],
            experts=self.experts[:, :, tokens],
            gates=self.gates[:, :, tokens],
            entropy=self.entropy[:, :, tokens],
            probs=None if self.probs is None else self.probs[:, :, tokens],
        )

    @property
    def num_experts(self) -> int:
        return len(self.groups)

    @property
    def num_groups(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def is_tied(self) -> bool:
        """Whether several experts share a group. Plots should then show groups."""
        return self.num_groups < self.num_experts

    @classmethod
    def concatenate(cls, traces: Sequence[RoutingTrace]) -> RoutingTrace:
        """Concatenate traces of the same model along the tokens."""
        first = traces[0]
        probs = [trace.probs for trace in traces if trace.probs is not None]
        return replace(
            first,
            token_ids=np.concatenate([trace.token_ids for trace in traces]),
            texts=tuple(text for trace in traces for text in trace.texts),
            is_prompt=np.concatenate([trace.is_prompt for trace in traces]),
            experts=np.concatenate([trace.experts for trace in traces], axis=2),
            gates=np.concatenate([trace.gates for trace in traces], axis=2),
            entropy=np.concatenate([trace.entropy for trace in traces], axis=2),
            probs=np.concatenate(probs, axis=2) if len(probs) == len(traces) else None,
        )

    def to_bytes(self) -> bytes:
        """Serialize to one safetensors file. Texts are stored as UTF-8 bytes with their lengths."""
        encoded = [text.encode() for text in self.texts]
        arrays = {
            "token_ids": self.token_ids,
            "is_prompt": self.is_prompt,
            "experts": self.experts,
            "gates": self.gates,
            "entropy": self.entropy,
            "groups": self.groups,
            "text_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "text_lengths": np.array([len(text) for text in encoded], dtype=np.int32),
        }
        if self.probs is not None:
            arrays["probs"] = self.probs
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        metadata = {"format": FORMAT, "kinds": ",".join(self.kinds), SUM_TO_ONE: str(self.gates_sum_to_one).lower()}
        return save_arrays(arrays, metadata=metadata)

    @classmethod
    def from_bytes(cls, data: bytes) -> RoutingTrace:
        """Load a trace that `to_bytes` serialized.

        Raises:
            ValueError: the bytes are not a trace, or its arrays contradict each other.
        """
        try:
            arrays = load_arrays(data)
            header = int.from_bytes(data[:8], "little")
            metadata = _metadata(data[8 : 8 + header])
            lengths = arrays.pop("text_lengths")
            raw = arrays.pop("text_bytes").tobytes()
            if lengths.min(initial=0) < 0 or lengths.sum() != len(raw):
                raise ValueError("text lengths do not add up")
            ends = np.cumsum(lengths)
            texts = tuple(raw[end - length : end].decode() for end, length in zip(ends, lengths, strict=True))
            kinds, sum_to_one = tuple(metadata["kinds"].split(",")), metadata.get(SUM_TO_ONE) != "false"
            trace = cls(texts=texts, kinds=kinds, gates_sum_to_one=sum_to_one, **arrays)
        except (SafetensorError, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"not a routing trace: {error}") from error
        _check_dtypes(trace)
        return trace

    def save(self, path: Path) -> None:
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> RoutingTrace:
        return cls.from_bytes(Path(path).read_bytes())


def _metadata(header: bytes) -> dict[str, str]:
    metadata = json.loads(header)["__metadata__"]
    if metadata.get("format") != FORMAT:
        raise ValueError(f"format is {metadata.get('format')!r}, expected {FORMAT!r}")
    return metadata


def _check_dtypes(trace: RoutingTrace) -> None:
    expected = {
        "token_ids": np.int32,
        "is_prompt": np.bool_,
        "experts": np.uint8,
        "gates": np.float16,
        "entropy": np.float16,
        "groups": np.uint8,
    }
    for name, dtype in expected.items():
        if getattr(trace, name).dtype != dtype:
            raise ValueError(f"not a routing trace: {name} is {getattr(trace, name).dtype}, expected {dtype.__name__}")


def _strongest_first(logits: Tensor, experts: Tensor) -> Tensor:
    """Sort the selected experts by descending logit, ties by ascending id; topk leaves the order of ties open."""
    experts = experts.sort(dim=-1).values  # [T, L * N, K]
    by_logit = logits.gather(-1, experts).argsort(dim=-1, descending=True, stable=True)  # [T, L * N, K]
    return experts.gather(-1, by_logit)


class RoutingRecorder:
    """Record the routing of every forward pass inside its `with` block, on the model's device and without a sync.

    The model passes the routers' logits and selected experts once per forward pass. They are copied to preallocated
    buffers: recording adds four operations to a step, and none when it is off. `trace` computes gates and entropies
    from the logits.

    Args:
        model: a model of this package, with or without a head.
        capacity: size of the buffers in tokens; the sequences of a batch are stored one after another.

    Raises:
        ValueError: another recorder is active on the model.
    """

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        self.model: Any = model.base_model
        config = model.config
        device = next(model.parameters()).device
        self.kinds = config.family.router_kinds
        self.gates_sum_to_one = config.gates_sum_to_one
        routers = len(self.kinds) * config.num_hidden_layers
        self.groups = np.asarray(config.groups, dtype=np.uint8)
        self.capacity = capacity
        self.logits = torch.zeros(
            capacity, routers, config.num_local_experts, dtype=torch.float32, device=device
        )  # [T, L * N, E]
        self.experts = torch.zeros(
            capacity, routers, config.num_experts_per_tok, dtype=torch.uint8, device=device
        )  # [T, L * N, K]
        self.length = torch.zeros((), dtype=torch.int64, device=device)

    def __enter__(self) -> RoutingRecorder:
        if self.model.recorder is not None:
            raise ValueError("This model is already being recorded; exit the other recorder first.")
        self.model.recorder = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.model.recorder = None

    def write(self, logits: list[Tensor], experts: list[Tensor]) -> None:
        """Append a forward pass: one `[T, E]` and one `[T, K]` per router, in the order L, N. Called by the model."""
        device = self.length.device  # layers can be on others
        stacked = torch.stack([one.to(device) for one in logits], dim=1).detach()  # [T, L * N, E]
        rows = torch.arange(len(stacked), device=device) + self.length  # [T]
        self.logits.index_copy_(0, rows, stacked)
        chosen = torch.stack([one.to(device) for one in experts], dim=1)  # [T, L * N, K]
        self.experts.index_copy_(0, rows, chosen.to(torch.uint8))
        self.length.add_(len(stacked))

    def next_row(self) -> tuple[Tensor, Tensor]:
        """Count one more token and return its rows, logits `[L * N, E]` and experts `[L * N, K]`, for its routing.

        Raises:
            ValueError: the buffers are full.
        """
        row = int(self.length)
        if row >= self.capacity:
            raise ValueError(f"The recorder is full with {row} tokens; make one with a larger capacity.")
        self.length.add_(1)
        return self.logits[row], self.experts[row]

    def trace(
        self,
        token_ids: Sequence[int],
        texts: Sequence[str],
        is_prompt: Sequence[bool] | bool,
        start: int = 0,
        keep: np.ndarray | None = None,
        with_probs: bool = False,
    ) -> RoutingTrace:
        """Return the trace of the recorded tokens from `start` on.

        Args:
            token_ids, texts, is_prompt: arrays for these tokens; see `RoutingTrace`.
            start: index of the first recorded token.
            keep: bool for each recorded token from `start` on, False at padding.
            with_probs: include the full probabilities.
        """
        count = len(token_ids) if keep is None else len(keep)
        logits = self.logits[start : start + count].cpu()  # [T, L * N, E]
        experts = self.experts[start : start + count].cpu()  # [T, L * N, K]
        if keep is not None:
            logits, experts = logits[torch.from_numpy(keep)], experts[torch.from_numpy(keep)]
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()  # [T, L * N, E]
        experts = _strongest_first(logits, experts.long())
        # For gates that sum to one, this softmax is the more exact way.
        gates = logits.gather(-1, experts).softmax(-1) if self.gates_sum_to_one else probs.gather(-1, experts)
        entropy = -(probs * log_probs).nan_to_num().sum(-1, keepdim=True)  # [T, L * N, 1]
        return RoutingTrace(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            texts=tuple(texts),
            is_prompt=np.broadcast_to(np.asarray(is_prompt, dtype=np.bool_), len(texts)).copy(),
            experts=self._by_layer(experts, np.uint8),
            gates=self._by_layer(gates, np.float16),
            entropy=self._by_layer(entropy, np.float16)[..., 0],
            kinds=self.kinds,
            groups=self.groups.copy(),
            gates_sum_to_one=self.gates_sum_to_one,
            probs=self._by_layer(probs, np.float16) if with_probs else None,
        )

    def _by_layer(self, rows: Tensor, dtype: type) -> np.ndarray:
        """`[T, L * N, X]` -> `[L, N, T, X]`."""
        T, _, X = rows.shape
        by_router: np.ndarray = rows.numpy().astype(dtype).transpose(1, 0, 2)  # [L * N, T, X]
        return np.ascontiguousarray(by_router).reshape(-1, len(self.kinds), T, X)
