"""A model as the C function sees it: sizes, and pointers to the weights where they are.

Shape letters are declared in `jetmoe/routing.py`; H key-value heads, G query heads of each, C channels per head.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from jetmoe.attention import frequencies
from jetmoe.experts.experts import Experts
from jetmoe.experts.router import RouterChange
from jetmoe.low_rank import LowRank, is_hooked, is_wrapped, split_adapters, why_not_split
from jetmoe.modeling import MoeForCausalLM
from jetmoe.native import structs
from jetmoe.native.parts import LayerParts, Part
from jetmoe.nf4.parts import Parts
from jetmoe.norm import RMSNorm
from jetmoe.routing import RoutingRecorder

KINDS = {torch.float32: 0, torch.bfloat16: 1}
NF4 = 2


class NotNativeError(Exception):
    """The native step can't compute this model. The message is the reason."""


class Description:
    """Pointers into a model and its active adapters, and scratch memory. Make a new one after any change of either.

    It holds the tensors, so that the pointers stay valid, and contiguous copies of adapters that are not packed.

    Raises:
        NotNativeError: the native step can't compute this model.
    """

    def __init__(self, model: MoeForCausalLM) -> None:
        _require_native(model)
        config = model.config
        self.config = config
        self.routers = len(config.family.router_kinds) * config.num_hidden_layers
        self._kept: list[Tensor] = []
        self._dtype = model.dtype
        self._largest_rank = 0
        self._caches: WeakKeyDictionary[Cache, DescribedCache] = WeakKeyDictionary()
        parts: list[LayerParts] = [layer.parts() for layer in model.model.layers[: config.num_hidden_layers]]
        if any(part.activation != "silu" for part in parts):
            raise NotNativeError("C code only computes experts with silu")
        self.layers = (structs.Layer * len(parts))(*map(self._layer, parts))
        self.model = self._model(model, parts[0])
        self._reserve()

    def sequence(self, token: int, cache: Cache) -> structs.Sequence:
        """Describe the next token of a sequence in a static cache, without recording. The caller keeps the cache.

        Raises:
            TypeError: the cache is not static, not for one sequence, or not in the dtype of the model.
        """
        described = self._caches.get(cache)
        if described is None:
            described = self._caches[cache] = self._describe(cache)
        position = int(cache.layers[0].cumulative_length)  # type: ignore[union-attr]
        if self.config.check_rope_type() == "dynamic":
            described.frequencies = self._frequencies_at(position)
        frequencies, rotary_scaling = described.frequencies
        return structs.Sequence(
            token=token,
            position=position,
            cache_size=described.size,
            caches=ctypes.addressof(described.layers),
            frequencies=frequencies.data_ptr(),
            rotary_scaling=rotary_scaling,
        )

    def _describe(self, cache: Cache) -> DescribedCache:
        layers = (structs.Cache * len(self.layers))()
        for layer, stored in zip(layers, cache.layers, strict=True):
            if not isinstance(stored, StaticLayer) or stored.is_sliding:
                raise TypeError(f"The native step needs a static cache, and not one of {type(stored).__name__}.")
            if not stored.is_initialized:
                one = torch.empty(1, self.model.H, 1, self.model.C, dtype=self._dtype)
                stored.lazy_initialization(one, one)
            assert stored.keys is not None and stored.values is not None
            if stored.keys.shape[:2] != (1, self.model.H) or stored.keys.dtype != self._dtype:
                raise TypeError("The native step needs a cache for one sequence, in the dtype of the model.")
            layer.keys, layer.values = stored.keys.data_ptr(), stored.values.data_ptr()
            layer.length = stored.cumulative_length.data_ptr()
        size = cache.layers[0].keys.shape[2]  # type: ignore[union-attr]
        return DescribedCache(layers, size, self._frequencies_at(0))

    def require_fitting(self, recorder: RoutingRecorder) -> None:
        """Raise ValueError if the recorder was made for a model with other routers or on another device."""
        E, K = self.model.E, self.model.K
        rows = [*recorder.logits.shape[1:], *recorder.experts.shape[1:]]
        if rows != [self.routers, E, self.routers, K] or recorder.logits.device.type != "cpu":
            raise ValueError(
                f"The recorder is for another model: it has rows {rows}, and {self.routers} routers of {E} "
                f"experts write {[self.routers, E, self.routers, K]}."
            )

    def _frequencies_at(self, position: int) -> tuple[Tensor, float]:
        """Return the rotary frequencies `[C / 2]` and their scaling; they depend on the position if rope is dynamic."""
        return frequencies(self.config, torch.tensor([[position]]))

    def _model(self, model: MoeForCausalLM, parts: LayerParts) -> structs.Model:
        config, embedding, norm = model.config, self._keep(model.model.embed_tokens.weight), model.model.norm
        return structs.Model(
            layers=len(self.layers),
            D=config.hidden_size,
            H=parts.attention.heads,
            G=parts.attention.num_key_value_groups,
            C=parts.attention.head_dim,
            E=config.num_local_experts,
            K=config.num_experts_per_tok,
            I=config.intermediate_size,
            by_slot=parts.attention.by_query,
            gates_sum_to_one=config.gates_sum_to_one,
            layer_eps=parts.attention_norm.eps,
            norm_eps=norm.eps,
            clip=parts.clip or 0.0,
            embedding_kind=KINDS[embedding.dtype],
            embedding=embedding.data_ptr(),
            cache_kind=KINDS[model.dtype],
            norm=self._norm(norm),
            head=self._linear(Part(model.lm_head)),
            layer=ctypes.addressof(self.layers),
        )

    def _layer(self, parts: LayerParts) -> structs.Layer:
        layer = structs.Layer(
            attention_norm=self._norm(parts.attention_norm),
            feed_forward_norm=self._norm(parts.feed_forward_norm),
            query_norm=self._norm(parts.query_norm),
            key_norm=self._norm(parts.key_norm),
            attention_router=self._linear(parts.attention_router),
            query=self._linear(parts.query),
            output=self._linear(parts.output),
            router=self._linear(parts.router),
            gate_up=self._linear(parts.gate_up),
            down=self._linear(parts.down),
        )
        if (change := parts.changes[-1]) is not None:
            layer.change = self._change(change)
        if parts.attention_router is not None and (change := parts.changes[0]) is not None:
            layer.attention_change = self._change(change)
        for i, part in enumerate(parts.projections):
            layer.projections[i] = self._linear(part)
        return layer

    def _linear(self, part: Part | None) -> structs.Linear:
        if part is None:
            return structs.Linear()
        if reason := why_not_split(part.module):
            raise NotNativeError(f"C code can't compute this adapter, because {reason}")
        layer, low_ranks = split_adapters(part.module, self._dtype)
        weight = _stored(layer, part.name)
        bias = getattr(layer, "bias", None) if part.bias is None else part.bias
        linear = structs.Linear(bias=0 if bias is None else self._numbers(bias))
        if isinstance(weight, Parts):
            codes, scales = self._keep(weight.codes), self._keep(weight.absmax)
            linear.kind, linear.weight, linear.scales = NF4, codes.data_ptr(), scales.data_ptr()
        else:
            weight = self._keep(weight)
            linear.kind, linear.weight = KINDS[weight.dtype], weight.data_ptr()
        linear.rows, linear.columns = weight.shape[-2:]
        if part.name in low_ranks:
            self._add_low_rank(linear, low_ranks[part.name])
        return linear

    def _add_low_rank(self, linear: structs.Linear, low_rank: LowRank) -> None:
        A, B = self._keep(low_rank.A), self._keep(low_rank.B)  # [E, R, in], [E, out, R]
        linear.low_rank_kind, linear.rank, linear.scaling = KINDS[A.dtype], A.shape[1], low_rank.scaling
        linear.A, linear.B = A.data_ptr(), B.data_ptr()
        self._largest_rank = max(self._largest_rank, linear.rank)

    def _change(self, change: RouterChange) -> structs.Change:
        rows = (self._keep(row).data_ptr() for row in (change.bias, change.scale, change.forced))
        return structs.Change(*rows)

    def _norm(self, norm: RMSNorm | None) -> int:
        return 0 if norm is None else self._numbers(norm.weight)

    def _numbers(self, tensor: Tensor) -> int:
        """Return the address of a small tensor in fp32."""
        return self._keep(tensor.float()).data_ptr()

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1]

    def _reserve(self) -> None:
        """Allocate scratch memory. C writes fp32, whatever torch's default dtype is while another model is made."""
        model, T = self.model, structs.MAX_TOKENS
        heads, chosen = model.H * model.C, T * model.K
        model.inner_size = chosen * self._largest_rank
        sizes = {
            "hidden": T * model.D, "rotary": T * model.C, "projected": T * (model.G + 2) * heads,
            "inner": structs.MAX_PRODUCTS * model.inner_size, "parts": chosen * model.D,
            "logits": T * model.E, "gates": chosen,
            "experts": chosen, "group_experts": chosen, "group_starts": chosen + 1, "order": chosen,
        }  # fmt: skip
        for name, size in sizes.items():
            setattr(model, name, self._keep(torch.empty(size, dtype=torch.float32)).data_ptr())
        for name, size in {"normed": T * model.D, "attended": T * model.G * heads, "active": chosen * model.I}.items():
            wide, narrow = (self._keep(torch.empty(size, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
            setattr(model, name, structs.Vector(wide.data_ptr(), narrow.data_ptr()))


@dataclass
class DescribedCache:
    """Pointers into a static cache, its length, and the rotary frequencies of its next token with their scaling."""

    layers: Any
    size: int
    frequencies: tuple[Tensor, float]


def _stored(layer: Any, name: str) -> Tensor | Parts:
    """Return a weight `[out, in]` or `[E, out, in]`; in 4 bits as tiles."""
    if type(layer) is not nn.Linear and not type(layer).__module__.startswith("jetmoe."):
        raise NotNativeError(f"C code can't compute a {type(layer).__name__}")
    weight: Any = layer.stored(name) if isinstance(layer, Experts) else getattr(layer, "tiles", getattr(layer, name))
    if weight is None or (isinstance(weight, Parts) and not weight.tiled):
        raise NotNativeError("C code needs 4-bit weights in tiles, which are for bf16 and AVX512-BF16")
    if isinstance(weight, Tensor) and weight.dtype not in KINDS:
        raise NotNativeError(f"C code can't compute weights in {weight.dtype}")
    return weight


def _require_native(model: MoeForCausalLM) -> None:
    if model.dtype not in KINDS:
        raise NotNativeError(f"C code can't compute weights in {model.dtype}")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise NotNativeError("the model is not on the CPU")
    if any(is_hooked(module) for module in model.modules()):
        raise NotNativeError("the model has hooks")
    if is_wrapped(model.model.embed_tokens):
        raise NotNativeError("an adapter changes its embeddings")
