"""Sparse mixture-of-experts models for PyTorch and transformers: JetMoE and OLMoE.

Importing this package registers its classes with the Auto classes.
"""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from jetmoe.interventions import Intervention
from jetmoe.models.jetmoe import (
    JetMoeForCausalLM,
    JetMoeForSequenceClassification,
    JetMoeModel,
    JetMoePreTrainedModel,
)
from jetmoe.models.jetmoe_config import JetMoeConfig
from jetmoe.models.olmoe import (
    OlmoeConfig,
    OlmoeForCausalLM,
    OlmoeForSequenceClassification,
    OlmoeModel,
    OlmoePreTrainedModel,
)
from jetmoe.routing import RoutingRecorder, RoutingTrace


def _register(config: Any, model: Any, causal_lm: Any, classifier: Any) -> None:
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    AutoModelForSequenceClassification.register(config, classifier, exist_ok=True)


_register(JetMoeConfig, JetMoeModel, JetMoeForCausalLM, JetMoeForSequenceClassification)
_register(OlmoeConfig, OlmoeModel, OlmoeForCausalLM, OlmoeForSequenceClassification)

__all__ = [
    "Intervention",
    "JetMoeConfig",
    "JetMoeForCausalLM",
    "JetMoeForSequenceClassification",
    "JetMoeModel",
    "JetMoePreTrainedModel",
    "OlmoeConfig",
    "OlmoeForCausalLM",
    "OlmoeForSequenceClassification",
    "OlmoeModel",
    "OlmoePreTrainedModel",
    "RoutingRecorder",
    "RoutingTrace",
]
