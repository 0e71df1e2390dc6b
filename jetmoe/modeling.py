"""What the models of all families share: a decoder of L layers, and a language-model head.

A family (`jetmoe/models`) has its own layers and configuration. Shape letters are declared in `jetmoe/routing.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from jetmoe.attention import rotary_embedding
from jetmoe.config import MoeConfig
from jetmoe.experts.experts import Experts
from jetmoe.linear import project
from jetmoe.losses import IGNORED, chunked_cross_entropy, load_balancing_loss, router_z_loss
from jetmoe.nf4.tensor import stored_bytes
from jetmoe.norm import RMSNorm
from jetmoe.routing import RoutingRecorder


class MoePreTrainedModel(PreTrainedModel):
    config: MoeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, quantization: str | None = None, **kwargs):
        """Load as in transformers, or in 4 bits with `quantization="nf4"` or `BitsAndBytesConfig(load_in_4bit=True)`.

        In 4 bits, experts and key-value projections are in NF4, everything else in `dtype`. A checkpoint saved in
        4 bits loads in 4 bits. See `jetmoe.loading.load.load` for devices.

        Raises:
            CheckpointError: files are missing, damaged or of another model family, or the GPU is too small.
        """
        from jetmoe.loading.load import asked_for_4bit, load_pretrained

        asked = asked_for_4bit(pretrained_model_name_or_path, quantization, kwargs)
        if asked is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return load_pretrained(cls, pretrained_model_name_or_path, asked, **kwargs)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of all weights as stored, including the scales of 4-bit weights."""
        buffers = sum(buffer.nbytes for buffer in self.buffers()) if return_buffers else 0
        tiles = [getattr(module, "tiles", None) for module in self.modules()]
        copies = sum(one.nbytes for one in tiles if one is not None)
        return buffers + copies + sum(stored_bytes(parameter) for parameter in self.parameters())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, Experts):
            for name in module.tensors:
                nn.init.normal_(getattr(module, name), mean=0.0, std=std)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


class MoeModel(MoePreTrainedModel):
    """The bare decoder. `recorder`, if set by `RoutingRecorder`, records the routing of every forward pass.

    A layer returns `[B, S, D]`, the attention weights or None, and for each router its logits `[T, E]` and its selected
    experts `[T, K]`, in a flat tuple: gradient checkpointing only tracks tensors at the top level of a tuple.
    """

    layer_class: ClassVar[type[nn.Module]]
    recorder: RoutingRecorder | None = None
    # Calls a layer. `jetmoe.decode` replaces it with a compile region: one layer is compiled instead of L.
    call_layer: Callable = staticmethod(lambda layer, *args, **kwargs: layer(*args, **kwargs))

    def __init__(self, config: MoeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([self.layer_class(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
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
        """Run the decoder.

        Args:
            input_ids: `[B, S]`; or pass `inputs_embeds` `[B, S, D]`.
            attention_mask: `[B, length so far]`, 0 at padding.
            position_ids: `[B, S]`; defaults to `cache_position` `[S]`, if given.
            past_key_values: the cache of earlier tokens.
            recorder: records the routing of this forward pass; defaults to the recorder of an open `with` block.

        Returns:
            last_hidden_state `[B, S, D]`; past_key_values; and if requested: hidden_states, L + 1 of `[B, S, D]`, the
            last one normed; attentions, L of `[B, heads, S, keys]` (in JetMoE, head `t * H + h` belongs to the t-th
            ranked expert of each query token); router_logits, `[B * S, E]` for each router of each layer, in order.

        Raises:
            ValueError: both or neither of input_ids and inputs_embeds are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
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
        for layer in self.layers[: self.config.num_hidden_layers]:  # fewer layers for an early exit
            states.append(hidden)
            hidden, weights, *routings = self.call_layer(
                layer,
                hidden,
                mask,
                rotary,
                past_key_values=past_key_values,
                output_attentions=output_attentions,
                **kwargs,
            )
            attentions.append(weights)
            logits += routings[0::2]
            experts += routings[1::2]
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


class MoeForCausalLM(MoePreTrainedModel, GenerationMixin):
    """The decoder with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    model_class: ClassVar[type[MoeModel]]

    def __init__(self, config: MoeConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
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
        """Run the decoder and the head; for the other arguments, see `MoeModel.forward`.

        Args:
            labels: `[B, S]`, -100 is ignored; shifted inside this method.
            logits_to_keep: number of last positions to compute logits for (0: all), or the positions themselves;
                `num_logits_to_keep` is its legacy name.
            skip_logits: compute only the loss, in chunks of logits; for training with large vocabularies.
            token_mask: `[B, S]`, 0 at tokens that the router losses ignore; defaults to attention_mask.

        Returns:
            logits `[B, S or kept, vocabulary]`, None if skipped; loss, if labels are given; aux_loss, the unweighted
            `load_balancing_loss`, with output_router_logits; and everything that the decoder returns. loss includes
            aux_loss times aux_loss_coef, and the z-loss times z_loss_coef.
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
        if labels is not None or kwargs.get("shift_labels") is not None:
            if skip_logits:
                loss = self._chunked_loss(outputs.last_hidden_state, labels, **kwargs)
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

    def _chunked_loss(self, hidden: Tensor, labels, shift_labels=None, num_items_in_batch=None, **kwargs) -> Tensor:
        """Return the same loss as `loss_function`: the mean over labels, or the sum divided by the batch's count."""
        if shift_labels is None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        targets = shift_labels.to(hidden.device).flatten()
        total = chunked_cross_entropy(hidden.flatten(0, 1), self.lm_head, targets)
        count = (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count, device=total.device)


def _default(value: bool | None, default: bool | None) -> bool:
    return bool(default if value is None else value)
