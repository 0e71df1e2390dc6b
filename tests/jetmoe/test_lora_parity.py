"""Our adapters against stock PEFT on unmodified transformers at toy size, fp32: outputs, gradients, files."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jetmoe.experts.assignments import FEW_ASSIGNMENTS
from jetmoe.loading.load import load
from jetmoe.lora import lora_config
from tests.builders.four_bits import WIDE, dequantized
from tests.builders.stock import run_stock
from tests.builders.toy_model import toy_model
from tests.jetmoe.stock_lora_reference import TARGETS

PRESETS = [(family, preset) for family, presets in TARGETS.items() for preset in presets]
TRAINED = ["attention", "experts", "all", "all+router"]
# A batch and three tokens: six assignments, so that of eight experts two get none, and few-token paths are taken.
INPUTS = {
    "batch": torch.randint(3, 99, (3, 24), generator=torch.Generator().manual_seed(0)),
    "few": torch.randint(3, 99, (1, 3), generator=torch.Generator().manual_seed(1)),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """By family: base checkpoints and adapters that we trained, and what stock PEFT makes of them."""
    return {family: made(family, tmp_path_factory.mktemp(family)) for family in TARGETS}


def made(family: str, folder: Path) -> Path:
    model = toy_model(family=family, num_local_experts=8, initializer_range=0.1, **WIDE)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "plain")
    dequantized(four_bit(folder)).save_pretrained(folder / "dequantized")
    shutil.copy(folder / "plain/config.json", folder / "dequantized")  # which does not say that it was in 4 bits
    for preset in TRAINED:
        train(plain(folder), preset).save_pretrained(folder / "trained" / preset)
    save_file(INPUTS, folder / "inputs.safetensors")
    run_stock("tests.jetmoe.stock_lora_reference", folder)
    return folder


@pytest.fixture
def folder(folders, family) -> Path:
    return folders[family]


@pytest.fixture(scope="module")
def references(folders) -> dict[str, dict[str, torch.Tensor]]:
    return {family: load_file(folder / "reference.safetensors") for family, folder in folders.items()}


@pytest.fixture
def reference(references, family) -> dict[str, torch.Tensor]:
    return references[family]


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "plain").eval()


def four_bit(folder):
    return load(AutoModelForCausalLM, folder / "plain", quantization="nf4", dtype=torch.float32)


def train(model, preset, steps=3):
    torch.manual_seed(2)
    adapted = peft.get_peft_model(model, lora_config(preset, r=3, lora_alpha=6, family=model.config.model_type)).train()
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.02)
    for _ in range(steps):
        adapted(INPUTS["batch"], labels=INPUTS["batch"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def assert_equals_stock(adapted, expected, ids, close):
    output = adapted(ids, labels=ids)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.pop("loss"), **close)
    torch.testing.assert_close(output.logits, expected.pop("logits"), **close)
    grads = {f"grad.{name}": one.grad for name, one in adapted.named_parameters() if one.grad is not None}
    assert grads.keys() == expected.keys() and all("lora_" in name for name in grads)
    for name, grad in grads.items():
        assert expected[name].any(), name
        torch.testing.assert_close(grad, expected[name], msg=lambda m, n=name: f"{n}: {m}", **close)


def answers(reference, *key):
    prefix = ".".join(key) + "."
    return {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}


def adapted_as_stock(model, folder, preset, checkpointing):
    adapted = peft.PeftModel.from_pretrained(model, folder / "stock" / preset, is_trainable=True)
    if checkpointing:
        adapted.train().gradient_checkpointing_enable({"use_reentrant": False})
    return adapted


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_loss_logits_and_gradients(folder, reference, preset, inputs, checkpointing):
    adapted = adapted_as_stock(plain(folder), folder, preset, checkpointing)
    assert_equals_stock(adapted, answers(reference, "plain", preset, inputs), INPUTS[inputs], CLOSE)


@pytest.mark.parametrize(
    ("family", "preset", "checkpointing"),
    [
        *((*one, False) for one in PRESETS),
        *((family, preset, True) for family in TARGETS for preset in ("all+router", "experts")),
    ],
)
@pytest.mark.parametrize("inputs", INPUTS)
def test_on_four_bits(folder, reference, preset, inputs, checkpointing):
    """Against stock on the dequantized weights."""
    adapted = adapted_as_stock(four_bit(folder), folder, preset, checkpointing)
    assert_equals_stock(adapted, answers(reference, "dequantized", preset, inputs), INPUTS[inputs], CLOSE)


@pytest.mark.parametrize("family", TARGETS)
def test_inputs_leave_experts_without_tokens(folder):
    model = plain(folder)
    assert INPUTS["few"].numel() * model.config.num_experts_per_tok <= FEW_ASSIGNMENTS
    counts = []
    for ids in INPUTS.values():
        for logits in model(ids, output_router_logits=True).router_logits:
            counts.append(logits.topk(2).indices.flatten().bincount(minlength=8))
    assert {0, 1} <= set(torch.stack(counts).flatten().tolist())


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("preset", TRAINED)
@torch.no_grad()
def test_adapters_that_we_trained_answer_the_same_in_stock_peft(folder, reference, preset):
    adapted = peft.PeftModel.from_pretrained(plain(folder), folder / "trained" / preset)
    logits = adapted(INPUTS["batch"]).logits
    torch.testing.assert_close(logits, reference[f"trained.{preset}"], **CLOSE)
    with adapted.disable_adapter():
        assert (adapted(INPUTS["batch"]).logits - logits).abs().max() > 0.05


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("preset", TRAINED)
def test_files_are_those_of_stock_peft(folder, preset):
    ours, stock = (load_file(folder / by / preset / "adapter_model.safetensors") for by in ("trained", "stock"))
    assert {name: (one.shape, one.dtype) for name, one in ours.items()} == {
        name: (one.shape, one.dtype) for name, one in stock.items()
    }


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("make", [plain, four_bit])
def test_packed_examples_do_not_see_each_other(folder, make):
    """Positions that restart and no mask: logits and gradients of each example alone."""
    adapted = peft.PeftModel.from_pretrained(make(folder), folder / "stock" / "all", is_trainable=True).train()
    examples = INPUTS["batch"][0].split([5, 12, 7])
    positions = torch.cat([torch.arange(len(one)) for one in examples]).unsqueeze(0)
    directions = torch.randn(1, 24, 99, generator=torch.Generator().manual_seed(3))

    packed = adapted(torch.cat(examples).unsqueeze(0), position_ids=positions, use_cache=False).logits
    alone = torch.cat([adapted(one.unsqueeze(0), use_cache=False).logits for one in examples], dim=1)
    torch.testing.assert_close(packed, alone, **CLOSE)
    factors = [one for one in adapted.parameters() if one.requires_grad]
    grads, expected = (torch.autograd.grad((logits * directions).mean(), factors) for logits in (packed, alone))
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other, **CLOSE)
