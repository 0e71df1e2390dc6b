"""A decoder with a classification head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from jetmoe.config import MoeConfig
from jetmoe.modeling import MoeModel, MoePreTrainedModel


class MoeForSequenceClassification(MoePreTrainedModel):
    """A decoder with a linear head on the last token that is not padding; regression if num_labels is 1."""

    model_class: ClassVar[type[MoeModel]]

    def __init__(self, config: MoeConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.model = self.model_class(config)
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
        """Run the decoder and the classification head; for the other arguments, see `MoeModel.forward`.

        Args:
            labels: `[B]`, class ids or (num_labels 1) numbers; or `[B, num_labels]`.

        Returns:
            logits `[B, num_labels]` and, if labels are given, the loss.

        Raises:
            ValueError: a batch of several rows without attention_mask and without pad_token_id in the configuration.
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
        # A head in training is in fp32, whatever the dtype of the decoder.
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last].to(self.score.weight.dtype)  # [B, D]
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
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()

    def _last_token(self, input_ids: Tensor | None, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the index `[B]` of each row's last token that is not padding: by the mask, else by pad_token_id (which
        must then not be the last token of a text), else the last position."""
        batch, length = hidden.shape[:2]
        if mask is not None and mask.ndim == 2:
            return (torch.arange(length, device=hidden.device) * (mask[:, -length:] != 0)).argmax(-1)
        if self.config.pad_token_id is None and batch > 1:
            raise ValueError("To classify several rows, pass attention_mask or set pad_token_id in the configuration.")
        if self.config.pad_token_id is None or input_ids is None:
            return torch.full((batch,), length - 1, device=hidden.device)
        positions = torch.arange(length, device=hidden.device)
        return (positions * (input_ids != self.config.pad_token_id)).argmax(-1)
