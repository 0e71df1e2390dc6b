"""Sparse mixture-of-experts models for PyTorch and transformers: JetMoE and OLMoE.

Importing this package registers its classes with the Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

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

for config, *classes in (
    (JetMoeConfig, JetMoeModel, JetMoeForCausalLM, JetMoeForSequenceClassification),
    (OlmoeConfig, OlmoeModel, OlmoeForCausalLM, OlmoeForSequenceClassification),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    autos = (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification)
    for auto, model in zip(autos, classes, strict=True):
        auto.register(config, model, exist_ok=True)

__all__ = [
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
