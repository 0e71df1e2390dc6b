"""What unmodified transformers computes with a toy model; runs in a process that never imports `jetmoe`.

    python -m tests.jetmoe.stock_reference OUT_DIR TOY

TOY is a key of `TOYS`. Writes OUT_DIR/model and OUT_DIR/classifier (checkpoints) and OUT_DIR/reference.safetensors
(inputs and results).
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.olmoe.modeling_olmoe import OlmoePreTrainedModel

COMMON = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.2,
    # Unequal to the 1e-6 of JetMoE's block norms, so that a mix-up shows.
    "rms_norm_eps": 1e-2,
    "rope_theta": 500.0,
}
OLMOE = {
    **COMMON,
    "model_type": "olmoe",
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 3,
    "eos_token_id": 2,
}
TOYS = {
    "jetmoe": {
        **COMMON,
        "model_type": "jetmoe",
        "kv_channels": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmoe": OLMOE,
    "olmoe, every option": {
        **OLMOE,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
        "clip_qkv": 0.9,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu",
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    },
}


def main(out: Path, toy: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TOYS[toy])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.randint(3, COMMON["vocab_size"], (3, 24))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, :2] = 0, 0
    padded = ids * mask
    results = {"ids": ids, "mask": mask, "padded": padded}

    with torch.no_grad():
        results["logits"] = model(ids).logits
        results["padded_logits"] = model(padded, attention_mask=mask).logits
        embeds = torch.randn(2, 9, COMMON["hidden_size"])
        results["embeds"], results["embeds_logits"] = embeds, model(inputs_embeds=embeds).logits
        first = model(padded[:, :10], attention_mask=mask[:, :10], use_cache=True)
        results["cached_logits"] = model(
            padded[:, 10:], attention_mask=mask, past_key_values=first.past_key_values
        ).logits
        model.set_attn_implementation("eager")
        everything = model(ids, output_attentions=True, output_hidden_states=True, output_router_logits=True)
        # Stock returns every attention router of JetMoE twice, and its balance loss pools all layers.
        if model.config.model_type != "jetmoe":
            results["router_logits"] = torch.stack(everything.router_logits)
        results["attention"] = torch.stack(everything.attentions)
        results["hidden_states"] = torch.stack(everything.hidden_states)
        model.set_attn_implementation("sdpa")
        for name, options in {"greedy": {}, "beam": {"num_beams": 3}}.items():
            results[name] = model.generate(
                padded, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None, **options
            )

    model.train()
    loss = model(padded, attention_mask=mask, labels=padded.masked_fill(mask == 0, -100)).loss
    loss.backward()
    results["loss"] = loss.detach()
    for name, parameter in model.named_parameters():
        results[f"grad.{name}"] = parameter.grad
    model.zero_grad()
    model.eval().save_pretrained(out / "model")
    results.update(classify(out, toy, ids))
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, out / "reference.safetensors")


def classify(out: Path, toy: str, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    results = {}
    right_padded = ids.clone()
    right_padded[0, 17:], right_padded[2, 3:] = 0, 0
    results["right_padded"] = right_padded
    for labels in (3, 1):
        config = AutoConfig.for_model(**TOYS[toy], num_labels=labels)
        torch.manual_seed(labels)
        model = classifier(config).eval()
        target = torch.tensor([0, 2, 1]) if labels > 1 else torch.tensor([0.5, -1.0, 2.0])
        output = model(right_padded, labels=target)
        output.loss.backward()
        results[f"class_logits_{labels}"], results[f"class_loss_{labels}"] = (
            output.logits.detach(),
            output.loss.detach(),
        )
        results[f"class_grad_{labels}"] = next(one.grad for one in model.parameters() if one.ndim == 3)
        model.save_pretrained(out / f"classifier_{labels}")
    return results


def classifier(config):
    if config.model_type == "jetmoe":
        return AutoModelForSequenceClassification.from_config(config)
    return OlmoeForSequenceClassification(config)


class OlmoeForSequenceClassification(GenericForSequenceClassification, OlmoePreTrainedModel):
    """transformers has none, but it has the part that all of its classifiers are made of."""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
