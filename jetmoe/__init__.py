"""JetMoE for PyTorch and transformers. Importing this package registers its classes with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from jetmoe.classification import JetMoeForSequenceClassification
from jetmoe.config import JetMoeConfig
from jetmoe.modeling import JetMoeForCausalLM, JetMoeModel, JetMoePreTrainedModel
from jetmoe.routing import RoutingRecorder, RoutingTrace

AutoConfig.register(JetMoeConfig.model_type, JetMoeConfig, exist_ok=True)
AutoModel.register(JetMoeConfig, JetMoeModel, exist_ok=True)
AutoModelForCausalLM.register(JetMoeConfig, JetMoeForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(JetMoeConfig, JetMoeForSequenceClassification, exist_ok=True)

__all__ = [
    "JetMoeConfig",
    "JetMoeForCausalLM",
    "JetMoeForSequenceClassification",
    "JetMoeModel",
    "JetMoePreTrainedModel",
    "RoutingRecorder",
    "RoutingTrace",
]
