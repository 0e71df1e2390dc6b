"""The JetMoE model: decoder of L blocks, each a mixture of attention heads (MoA) and a mixture of experts (MoE).

Module and parameter names are those of the released checkpoints, so weights load in both directions: released to ours,
ours to transformers' JetMoE. Shape letters are declared in `jetmoe/routing.py`; H heads, C channels of a head, and
A = T * K assignments of tokens to experts. Paper: arXiv 2404.07413.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from jetmoe import single_query
from jetmoe.config import JetMoeConfig
from jetmoe.experts import (
    JetMoeExperts,
    Routing,
    chosen_linear,
    collect,
    combine,
    dispatched_linear,
    few_tokens,
    gated_linear,
    permute,
    product,
    project,
    sorted_linear,
)
from jetmoe.losses import IGNORED, chunked_cross_entropy, load_balancing_loss, router_z_loss
from jetmoe.low_rank import split_adapters
from jetmoe.nf4.tensor import stored_bytes
from jetmoe.routing import RoutingRecorder

# The norms inside blocks, whatever config.rms_norm_eps says: so the released models were trained.
BLOCK_NORM_EPS = 1e-6
# Queries of one call of the CPU's attention kernel, which is a quarter slower on all of a prompt's at once.
CAUSAL_BLOCK = 128


class JetMoePreTrainedModel(PreTrainedModel):
    config: JetMoeConfig
    config_class = JetMoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["JetMoeDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, quantization: str | None = None, **kwargs):
        """As in transformers, and in 4 bits with `quantization="nf4"`, which is what `BitsAndBytesConfig(load_in_4bit=
        True)` means here: experts and key-value projections in NF4, everything else in `dtype`. A checkpoint that was
        saved in 4 bits loads in 4 bits; see `jetmoe.loading.load` for the devices.

        Raises:
            jetmoe.loading.CheckpointError: the files are missing, damaged or another family's, or the GPU is too small.
        """
        from jetmoe import loading

        asked = loading.asked_for_4bit(pretrained_model_name_or_path, quantization, kwargs)
        if asked is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return loading.load_pretrained(cls, pretrained_model_name_or_path, asked, **kwargs)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weights as they are stored, 4-bit ones with their scales."""
        buffers = sum(buffer.nbytes for buffer in self.buffers()) if return_buffers else 0
        tiles = [getattr(module, "tiles", None) for module in self.modules()]
        copies = sum(one.nbytes for one in tiles if one is not None)
        return buffers + copies + sum(stored_bytes(parameter) for parameter in self.parameters())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, JetMoeExperts | nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, JetMoeMoA | JetMoeMoE):
            nn.init.zeros_(module.bias)
        elif isinstance(module, JetMoeRMSNorm):
            nn.init.ones_(module.weight)


class JetMoeModel(JetMoePreTrainedModel):
    """The bare decoder. `recorder`, when set by `RoutingRecorder`, sees the routing of every forward."""

    recorder: RoutingRecorder | None = None
    # How a layer is called; `jetmoe.decode` marks it as a region, so that one layer is compiled instead of L.
    call_layer: Callable = staticmethod(lambda layer, *args, **kwargs: layer(*args, **kwargs))

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([JetMoeDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = JetMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        recorder: RoutingRecorder | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast | tuple:
        """Runs the decoder.

        Args:
            input_ids: `[B, S]`; or give `inputs_embeds` `[B, S, D]`.
            attention_mask: `[B, length so far]`, 0 at padding.
            position_ids: `[B, S]`; `cache_position` `[S]` stands in for it where only that is given.
            past_key_values: the cache of earlier tokens.
            recorder: sees the routing of this forward; otherwise the one whose `with` block is open, if any.

        Returns:
            last_hidden_state `[B, S, D]`; past_key_values; and if asked for: hidden_states, L + 1 of `[B, S, D]`, the
            last one normed; attentions, L of `[B, K * H, S, keys]` where head `t * H + h` belongs to the t-th ranked
            expert of each query token; router_logits, exactly two per layer, MoA then MoE, `[B * S, E]` each.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        output_attentions = _default(output_attentions, getattr(self.config, "output_attentions", False))
        output_hidden_states = _default(output_hidden_states, self.config.output_hidden_states)
        output_router_logits = _default(output_router_logits, self.config.output_router_logits)
        use_cache = _default(use_cache, self.config.use_cache) and not (self.gradient_checkpointing and self.training)

        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, S, D]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids = self._positions(hidden, position_ids, cache_position, past_key_values)  # [B or 1, S]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = rotary_embedding(self.config, position_ids, hidden.dtype)

        states, attentions, logits, experts = [], [], [], []
        for layer in self.layers:
            states.append(hidden)
            output = LayerOutput(
                *self.call_layer(
                    layer,
                    hidden,
                    mask,
                    rotary,
                    past_key_values=past_key_values,
                    output_attentions=output_attentions,
                    **kwargs,
                )
            )
            hidden = output.hidden_states
            attentions.append(output.attentions)
            logits += [output.moa_logits, output.moe_logits]
            experts += [output.moa_experts, output.moe_experts]
        hidden = self.norm(hidden)
        recorder = recorder or self.recorder
        if recorder is not None:
            recorder.write(logits, experts)

        result = MoeModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,  # type: ignore[arg-type]
            router_logits=tuple(logits) if output_router_logits else None,  # type: ignore[arg-type]
        )
        return result if _default(return_dict, self.config.return_dict) else result.to_tuple()

    def _positions(
        self, hidden: Tensor, position_ids: Tensor | None, cache_position: Tensor | None, cache: Cache | None
    ) -> Tensor:
        if position_ids is not None:
            return position_ids
        if cache_position is None:
            past = cache.get_seq_length() if cache is not None else 0
            cache_position = torch.arange(hidden.shape[1], device=hidden.device) + past
        return cache_position.unsqueeze(0)


class JetMoeForCausalLM(JetMoePreTrainedModel, GenerationMixin):
    """JetMoE with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__(config)
        self.model = JetMoeModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_router_logits: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_logits_to_keep: int | None = None,
        skip_logits: bool = False,
        token_mask: Tensor | None = None,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast | tuple:
        """Runs the decoder and the head; the arguments beyond these are those of `JetMoeModel.forward`.

        Args:
            labels: `[B, S]`, -100 where no loss is wanted; shifted here.
            logits_to_keep: how many last positions get logits (0: all), or the positions themselves;
                `num_logits_to_keep` is its old name.
            skip_logits: give the loss of the labels alone, computed in chunks; for training on large vocabularies.
            token_mask: `[B, S]`, 0 where the routers' losses don't look, such as padding; attention_mask stands in
                for it.

        Returns:
            logits `[B, S or kept, vocabulary]`, None where skipped; loss where labels are given; aux_loss where
            output_router_logits: `load_balancing_loss` as it is, which enters the loss times aux_loss_coef, with the
            z-loss times z_loss_coef beside it; and everything that the decoder returns.
        """
        output_router_logits = _default(output_router_logits, self.config.output_router_logits)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_router_logits=output_router_logits,
            return_dict=True,
            cache_position=cache_position,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        logits = None
        if not skip_logits:
            keep = logits_to_keep if num_logits_to_keep is None else num_logits_to_keep
            kept = keep if isinstance(keep, Tensor) else slice(-keep if keep else None, None)
            logits = project(self.lm_head, outputs.last_hidden_state[:, kept])  # [B, kept, vocabulary]

        aux_loss = None
        if output_router_logits:
            top_k = self.config.num_experts_per_tok
            token_mask = attention_mask if token_mask is None else token_mask
            aux_loss = load_balancing_loss(outputs.router_logits, top_k, token_mask)
        loss = None
        if labels is not None:
            if logits is None:
                loss = self._chunked_loss(outputs.last_hidden_state, labels, kwargs.get("num_items_in_batch"))
            else:
                loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
            if aux_loss is not None:
                loss = loss + self.config.aux_loss_coef * aux_loss.to(loss.device)
                if self.config.z_loss_coef:
                    z_loss = router_z_loss(outputs.router_logits, token_mask)
                    loss = loss + self.config.z_loss_coef * z_loss.to(loss.device)

        result = MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
        return result if _default(return_dict, self.config.return_dict) else result.to_tuple()

    def _chunked_loss(self, hidden: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """The loss that `loss_function` gives: the mean over labels, or their sum over `count` of a whole batch."""
        labels = labels[:, 1:].to(hidden.device)  # [B, S - 1]
        total = chunked_cross_entropy(hidden[:, :-1].flatten(0, 1), self.lm_head.weight, labels.flatten())
        return total / ((labels != IGNORED).sum() if count is None else torch.as_tensor(count, device=total.device))


class JetMoeForSequenceClassification(JetMoePreTrainedModel):
    """JetMoE with a linear head on the last token that is not padding; regression when num_labels is 1."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = JetMoeModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast | tuple:
        """Args beyond those of the decoder: labels `[B]`, class ids or (num_labels 1) numbers, or `[B, num_labels]`.

        Returns:
            logits `[B, num_labels]` and, where labels are given, the loss.

        Raises:
            ValueError: a batch of several rows with neither attention_mask nor pad_token_id in the configuration.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # [B, S, D]
        last = self._last_token(input_ids, attention_mask, hidden)  # [B]
        # A head that is being trained is in fp32, whatever the decoder is in.
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last].to(self.score.weight.dtype)  # [B, D]
        logits = self.score(pooled)  # [B, labels]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        result = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if _default(return_dict, self.config.return_dict) else result.to_tuple()

    def _last_token(self, input_ids: Tensor | None, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """Index of each row's last token that is not padding `[B]`: by the mask; without one by its id, which must then
        be no token of a text's end; of its last one where ids are unknown."""
        batch, length = hidden.shape[:2]
        if mask is not None and mask.ndim == 2:
            return (torch.arange(length, device=hidden.device) * (mask[:, -length:] != 0)).argmax(-1)
        if self.config.pad_token_id is None and batch > 1:
            raise ValueError("Classifying several rows at once needs pad_token_id in the configuration; set it.")
        if self.config.pad_token_id is None or input_ids is None:
            return torch.full((batch,), length - 1, device=hidden.device)
        positions = torch.arange(length, device=hidden.device)
        return (positions * (input_ids != self.config.pad_token_id)).argmax(-1)


class LayerOutput(NamedTuple):
    # Flat tensors, because gradient checkpointing only follows tensors in a tuple.
    hidden_states: Tensor  # [B, S, D]
    attentions: Tensor | None  # [B, K * H, S, keys]
    moa_logits: Tensor  # [T, E]
    moa_experts: Tensor  # [T, K]
    moe_logits: Tensor  # [T, E]
    moe_experts: Tensor  # [T, K]


class JetMoeDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: JetMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = JetMoeRMSNorm(config.hidden_size, BLOCK_NORM_EPS)
        self.self_attention = JetMoeAttention(config, layer_idx)
        self.post_attention_layernorm = JetMoeRMSNorm(config.hidden_size, BLOCK_NORM_EPS)
        self.mlp = JetMoeMoE(config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        past_key_values: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple:
        attended, attentions, moa = self.self_attention(
            self.input_layernorm(hidden), mask, rotary, past_key_values, output_attentions, **kwargs
        )
        hidden = hidden + attended
        transformed, moe = self.mlp(self.post_attention_layernorm(hidden))
        hidden = hidden + transformed
        return tuple(LayerOutput(hidden, attentions, moa.logits, moa.experts, moe.logits, moe.experts))


class StaticKV:
    """One layer's keys and values before the current position, for a graph that writes the `new` ones itself."""

    def __init__(self, keys: Tensor, values: Tensor, length: Tensor) -> None:
        self.keys, self.values = keys, values  # [B, H, size, C]
        self.length = length  # [1], how many of them are there
        self.new: tuple[Tensor, ...] = ()  # [B, H, 1, C] each


class JetMoeAttention(nn.Module):
    """Attention whose query and output projections are experts, over keys and values that all experts share."""

    def __init__(self, config: JetMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = True
        self.heads = config.num_key_value_heads
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5
        # Slots of one key-value head are neighbours in our head order, as every attention kernel expects of groups.
        self.num_key_value_groups = config.num_experts_per_tok
        self.experts = JetMoeMoA(config)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * self.heads * self.head_dim, bias=False)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        cache: Cache | StaticKV | None = None,
        output_attentions: bool = False,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Routing]:
        B, S, _ = hidden.shape
        K, H, C = self.num_key_value_groups, self.heads, self.head_dim
        query, routing = self.experts.map(hidden.flatten(0, 1))  # [T, K, H * C]
        key, value = project(self.kv_proj, hidden).view(B, S, 2 * H, C).split(H, dim=2)  # [B, S, H, C]
        # Queries and keys turn together: one pass of rotary arithmetic instead of two.
        turned = rotate(torch.cat([query.view(B, S, K * H, C), key], dim=2), rotary)  # [B, S, K * H + H, C]
        query, key = turned.split([K * H, H], dim=2)
        query = query.view(B, S, K, H, C)
        key, value = key.transpose(1, 2), value.transpose(1, 2)  # [B, H, S, C]
        if isinstance(cache, StaticKV):
            cache.new = key, value
            known = single_query.KVView(cache.keys, cache.values, cache.length, key, value)
            attended, attentions = single_query.attend(query, known, mask, self.scaling), None  # [B, 1, K, H, C]
        else:
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)  # [B, H, keys, C]
            attended, attentions = self._attend(query, key, value, mask, output_attentions, **kwargs)
        return self.experts.reduce(attended.reshape(B * S * K, H * C), routing).view(B, S, -1), attentions, routing

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, output_attentions: bool, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        B, S, K, H, C = query.shape
        implementation = self.config._attn_implementation
        if output_attentions and implementation not in ("eager", "sdpa"):
            raise ValueError(f"{implementation} attention has no weights to show; use 'eager'.")
        implementation = "eager" if output_attentions else implementation
        dropout = self.config.attention_dropout if self.training else 0.0
        if implementation == "sdpa" and S == 1:
            # A single position sees the same keys from every slot, so slots stand as query rows: no repeated keys.
            attended = F.scaled_dot_product_attention(
                query.view(B, K, H, C).transpose(1, 2), key, value, attn_mask=mask, dropout_p=dropout
            )  # [B, H, K, C]
            return attended.transpose(1, 2).unsqueeze(1), None
        grouped = query.permute(0, 3, 2, 1, 4).reshape(B, H * K, S, C)
        reads = mask is None and not torch.is_grad_enabled()
        if implementation == "sdpa" and reads and S >= 2 * CAUSAL_BLOCK and query.device.type == "cpu":
            attended = blockwise_causal_attention(grouped, key, value, dropout)  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        if implementation == "sdpa":
            attended = F.scaled_dot_product_attention(
                grouped, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=K > 1
            )  # [B, H * K, S, C]
            return attended.view(B, H, K, S, C).permute(0, 3, 2, 1, 4), None
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        attended, weights = interface(
            self, grouped, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # [B, S, H * K, C]
        if weights is not None and output_attentions:
            weights = weights.view(B, H, K, S, -1).transpose(1, 2).flatten(1, 2)  # [B, K * H, S, keys]
        return attended.view(B, S, H, K, C).transpose(2, 3), weights


class JetMoeMoA(nn.Module):
    """Mixture of attention heads: E pairs of a query and an output projection."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        size = config.kv_channels * config.num_key_value_heads
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = JetMoeExperts(config.num_local_experts, config.hidden_size, size)
        self.output_linear = JetMoeExperts(config.num_local_experts, size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def map(self, tokens: Tensor) -> tuple[Tensor, Routing]:
        """Query projections of each token's experts: `[T, D]` -> `[T, K, H * C]`."""
        routing = self.router(tokens)
        if few_tokens(routing):
            rows = chosen_linear(self.input_linear, repeat_tokens(tokens, routing), routing)  # [A, H * C]
        else:
            rows = dispatched_linear(self.input_linear, tokens, routing)  # [A, H * C]
            rows = permute(rows, routing.sorted().inverse, routing.sorted().order)
        return rows.view(len(tokens), routing.top_k, -1), routing

    def reduce(self, rows: Tensor, routing: Routing) -> Tensor:
        """Output projections of the same experts, summed by gate: `[A, H * C]` -> `[T, D]`."""
        if few_tokens(routing):
            return combine(chosen_linear(self.output_linear, rows, routing), routing.gates) + self.bias
        # Weighed before the product, so that its result need not be kept for the gradient of the gates.
        rows = rows * routing.gates.flatten().unsqueeze(1)  # [A, H * C]
        rows = permute(rows, routing.sorted().order, routing.sorted().inverse)
        return collect(sorted_linear(self.output_linear, rows, routing), routing) + self.bias


class JetMoeMoE(nn.Module):
    """Mixture of E gated feed-forward experts."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.activation_function]
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.input_linear = JetMoeExperts(config.num_local_experts, config.hidden_size, 2 * config.intermediate_size)
        self.output_linear = JetMoeExperts(config.num_local_experts, config.intermediate_size, config.hidden_size)
        self.router = JetMoeRouter(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Routing]:
        """`[B, S, D]` -> `[B, S, D]` and the routing of its B * S tokens."""
        tokens = hidden.flatten(0, 1)  # [T, D]
        routing = self.router(tokens)
        if few_tokens(routing):
            rows = self._gated(chosen_linear(self.input_linear, repeat_tokens(tokens, routing), routing))
            result = combine(chosen_linear(self.output_linear, rows, routing), routing.gates)  # [T, D]
        else:
            rows = dispatched_linear(self.input_linear, tokens, routing)  # [A, 2 * I]
            gates = permute(routing.gates.flatten().unsqueeze(1), routing.sorted().order, routing.sorted().inverse)
            rows = gated_linear(self.output_linear, rows, gates, routing, before=self._weighed)  # [A, D]
            result = collect(rows, routing)  # [T, D]
        return (result + self.bias).view_as(hidden), routing

    def _weighed(self, rows: Tensor, gates: Tensor) -> Tensor:
        """Weighed before the last product, whose result then need not be kept: `[A, 2 * I]`, `[A, 1]` -> `[A, I]`."""
        return self._gated(rows) * gates

    def _gated(self, rows: Tensor) -> Tensor:
        """`[A, 2 * I]` -> `[A, I]`."""
        gate, up = rows.chunk(2, dim=-1)
        return self.activation(gate) * up


class JetMoeRouter(nn.Module):
    """Picks K of E experts; the gates are a softmax over the picked logits only."""

    def __init__(self, config: JetMoeConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.layer = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)

    def forward(self, tokens: Tensor) -> Routing:
        # In fp32 whatever the model's dtype: bf16 logits let ties between an upcycled model's slots break.
        layer, low_rank = split_adapters(self.layer, torch.float32)
        logits = product(layer.weight.float(), tokens.float())  # [T, E]
        if low_rank is not None:
            logits = logits + product(low_rank.B[0], product(low_rank.A[0], tokens.float()))
        picked, experts = logits.topk(self.top_k, dim=-1)  # [T, K]
        return Routing(logits, experts, picked.softmax(dim=-1).to(tokens.dtype))


class JetMoeRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled() and hidden.requires_grad and not torch.compiler.is_dynamo_compiling():
            return _RMSNorm.apply(hidden, self.weight, self.eps)
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """`F.rms_norm`, which keeps two copies in fp32 for its backward pass; here the input is kept, as it is."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.eps = eps
        return F.rms_norm(hidden, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight = ctx.saved_tensors
        wide = hidden.float()
        inverse = (wide.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()  # [..., 1]
        normed = wide.mul_(inverse) if wide is not hidden else wide * inverse  # [..., D]
        slopes = grad * weight.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)  # [D]
        inward = (slopes * normed).mean(-1, keepdim=True)
        return ((slopes - normed * inward) * inverse).to(hidden.dtype), grad_weight, None


def repeat_tokens(tokens: Tensor, routing: Routing) -> Tensor:
    """A row for each assignment, in token order: `[T, D]` -> `[A, D]`."""
    return tokens.unsqueeze(1).expand(-1, routing.top_k, -1).reshape(-1, tokens.shape[-1])


def rotary_embedding(config: JetMoeConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[B, S, 1, C]` of rotary position embeddings (arXiv 2104.09864), computed in fp32."""
    theta = config.rope_parameters["rope_theta"]  # type: ignore[index]
    exponents = torch.arange(0, config.kv_channels, 2, device=position_ids.device).float() / config.kv_channels
    angles = position_ids.unsqueeze(-1).float() * (1.0 / theta**exponents)  # [B, S, C / 2]
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)  # [B, S, 1, C]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[B, S, heads, C]`; the two halves of C are the two axes that turn."""
    if heads.requires_grad and torch.is_grad_enabled():
        return _Rotate.apply(heads, *rotary)
    return _rotated(heads, *rotary)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin


class _Rotate(torch.autograd.Function):
    """Its gradient is the gradient turned back."""

    @staticmethod
    def forward(ctx, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.rotary = cos, sin
        return _rotated(heads, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.rotary
        return _rotated(grad, cos, -sin), None, None


def blockwise_causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Causal attention `[B, H * K, S, C]` over `[B, H, S, C]`, some queries at a time over the keys up to them."""
    visible = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).tril()
    parts = []
    for start in range(0, query.shape[2], CAUSAL_BLOCK):
        end = min(start + CAUSAL_BLOCK, query.shape[2])
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                attn_mask=visible[start:end, :end],
                dropout_p=dropout,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2)


def eager_attention(
    module: JetMoeAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention with visible weights: `[B, H * K, S, C]` -> `[B, S, H * K, C]` and `[B, H * K, S, keys]`."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # [B, H * K, S, keys]
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    attended = F.dropout(weights, dropout, module.training) @ value
    return attended.transpose(1, 2), weights


def _default(value: bool | None, default: bool | None) -> bool:
    return bool(default if value is None else value)
