"""What stock PEFT on unmodified transformers computes with a toy; runs in a process that never imports `jetmoe`.

    python -m tests.jetmoe.stock_lora_reference FOLDER

Reads the checkpoints FOLDER/plain and FOLDER/dequantized, FOLDER/inputs.safetensors, and adapters FOLDER/trained/*.
Writes adapters FOLDER/stock/*, and FOLDER/reference.safetensors: loss, logits and every adapter's gradient by
"checkpoint.preset.inputs", and the logits of FOLDER/trained/* by "trained.preset".
"""

import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

MOA = ["experts.input_linear.weight", "experts.output_linear.weight"]
MOE = ["mlp.input_linear.weight", "mlp.output_linear.weight"]
# Written out once more, so that a slip in `jetmoe.lora.PRESETS` shows.
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
FUSED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TARGETS: dict[str, dict[str, dict[str, list[str]]]] = {
    "jetmoe": {
        "attention": {"target_modules": ["kv_proj"], "target_parameters": MOA},
        "experts": {"target_modules": [], "target_parameters": MOE},
        "moa": {"target_modules": [], "target_parameters": MOA},
        "all": {"target_modules": ["kv_proj"], "target_parameters": MOA + MOE},
        "router": {"target_modules": ["router.layer"]},
        "all+router": {"target_modules": ["kv_proj", "router.layer"], "target_parameters": MOA + MOE},
    },
    "olmoe": {
        "attention": {"target_modules": QKVO},
        "experts": {"target_modules": [], "target_parameters": FUSED},
        "all": {"target_modules": QKVO, "target_parameters": FUSED},
        "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
        "all+router": {"target_modules": QKVO, "target_parameters": [*FUSED, "mlp.gate.weight"]},
    },
}


def main(folder: Path) -> None:
    inputs = load_file(folder / "inputs.safetensors")
    results = {}
    family = base(folder / "plain").config.model_type
    for preset, targets in TARGETS[family].items():
        make_adapter(folder, preset, targets)
        for checkpoint in ("plain", "dequantized"):
            model = peft.PeftModel.from_pretrained(
                base(folder / checkpoint), folder / "stock" / preset, is_trainable=True
            )
            for name, ids in inputs.items():
                answers = loss_logits_and_gradients(model, ids)
                results |= {f"{checkpoint}.{preset}.{name}.{key}": value for key, value in answers.items()}
    for adapter in (folder / "trained").iterdir():
        model = peft.PeftModel.from_pretrained(base(folder / "plain"), adapter)
        with torch.no_grad():
            results[f"trained.{adapter.name}"] = model(inputs["batch"]).logits
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, folder / "reference.safetensors")


def base(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.")
    return model


def make_adapter(folder: Path, preset: str, targets: dict[str, list[str]]) -> None:
    """With a `lora_B` that is not zero, so that `lora_A` has gradients too."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        base(folder / "plain"), peft.LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **targets)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder / "stock" / preset)


def loss_logits_and_gradients(model: peft.PeftModel, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(ids, labels=ids)
    output.loss.backward()
    grads = {f"grad.{name}": one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": output.loss.detach(), "logits": output.logits.detach(), **grads}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
