"""Our models against those of transformers at toy size, fp32: outputs, gradients, generation, checkpoints."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache, StaticCache

import jetmoe
from tests.builders.stock import run_stock
from tests.jetmoe.stock_reference import TOYS

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=TOYS)
def reference_dir(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stock")
    run_stock("tests.jetmoe.stock_reference", out, request.param)
    return out


@pytest.fixture(scope="module")
def reference(reference_dir) -> dict[str, torch.Tensor]:
    return load_file(reference_dir / "reference.safetensors")


@pytest.fixture
def model(reference_dir):
    return AutoModelForCausalLM.from_pretrained(reference_dir / "model").eval()


def test_auto_class_returns_ours(model):
    assert type(model) in (jetmoe.JetMoeForCausalLM, jetmoe.OlmoeForCausalLM)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_logits(model, reference, implementation):
    model.set_attn_implementation(implementation)
    torch.testing.assert_close(model(reference["ids"]).logits, reference["logits"], **CLOSE)


@torch.no_grad()
def test_logits_with_padding(model, reference):
    mask = reference["mask"]
    logits = model(reference["padded"], attention_mask=mask).logits
    torch.testing.assert_close(logits[mask == 1], reference["padded_logits"][mask == 1], **CLOSE)


@torch.no_grad()
def test_logits_from_embeddings(model, reference):
    logits = model(inputs_embeds=reference["embeds"]).logits
    torch.testing.assert_close(logits, reference["embeds_logits"], **CLOSE)


@pytest.mark.parametrize("step", [14, 1])
@pytest.mark.parametrize("make_cache", [DynamicCache, lambda config: StaticCache(config=config, max_cache_len=32)])
@torch.no_grad()
def test_logits_with_cache(model, reference, make_cache, step):
    """Steps of one token take the few-tokens path, a step of 14 the sorted one."""
    padded, mask = reference["padded"], reference["mask"]
    cache = make_cache(config=model.config)
    model(padded[:, :10], attention_mask=mask[:, :10], past_key_values=cache)
    logits = [
        model(padded[:, i : i + step], attention_mask=mask[:, : i + step], past_key_values=cache).logits
        for i in range(10, 24, step)
    ]
    torch.testing.assert_close(torch.cat(logits, dim=1), reference["cached_logits"], **CLOSE)


@torch.no_grad()
def test_attentions_and_hidden_states(model, reference):
    output = model(reference["ids"], output_attentions=True, output_hidden_states=True, output_router_logits=True)
    if "router_logits" in reference:
        torch.testing.assert_close(torch.stack(output.router_logits), reference["router_logits"], **CLOSE)
    torch.testing.assert_close(torch.stack(output.attentions), reference["attention"], **CLOSE)
    torch.testing.assert_close(torch.stack(output.hidden_states), reference["hidden_states"], **CLOSE)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_generated_tokens(model, reference, search, cache):
    beams = {"greedy": 1, "beam": 3}[search]
    tokens = model.generate(
        reference["padded"],
        attention_mask=reference["mask"],
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        num_beams=beams,
        cache_implementation=cache,
    )
    assert torch.equal(tokens, reference[search])


@pytest.mark.parametrize("checkpointing", [False, True, "reentrant"])
def test_loss_and_gradients(model, reference, checkpointing):
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    padded, mask = reference["padded"], reference["mask"]
    loss = model(padded, attention_mask=mask, labels=padded.masked_fill(mask == 0, -100)).loss
    loss.backward()
    torch.testing.assert_close(loss, reference["loss"], **CLOSE)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, reference[f"grad.{name}"], msg=lambda m, n=name: f"{n}: {m}", **CLOSE
        )


@pytest.mark.parametrize("labels", [3, 1])
def test_classification_head(reference_dir, reference, labels):
    model = AutoModelForSequenceClassification.from_pretrained(reference_dir / f"classifier_{labels}").eval()
    assert type(model) in (jetmoe.JetMoeForSequenceClassification, jetmoe.OlmoeForSequenceClassification)
    target = torch.tensor([0, 2, 1]) if labels > 1 else torch.tensor([0.5, -1.0, 2.0])
    output = model(reference["right_padded"], labels=target)
    output.loss.backward()
    torch.testing.assert_close(output.logits, reference[f"class_logits_{labels}"], **CLOSE)
    torch.testing.assert_close(output.loss, reference[f"class_loss_{labels}"], **CLOSE)
    grad = next(one.grad for one in model.parameters() if one.ndim == 3)
    torch.testing.assert_close(grad, reference[f"class_grad_{labels}"], **CLOSE)


def test_our_checkpoint_loads_in_transformers(model, reference, tmp_path):
    """Saved by us, read by unmodified transformers in its own process: no key missing, the same logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
        expected = model(reference["ids"]).logits
    model.save_pretrained(tmp_path)
    program = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "from transformers import AutoModelForCausalLM\n"
        "model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "assert type(model).__module__.startswith('transformers.')\n"
        "ids = load_file(sys.argv[2])['ids']\n"
        "save_file({'logits': model.eval()(ids).logits.detach()}, sys.argv[1] + '/out.safetensors')\n"
    )
    torch_file = tmp_path / "ids.safetensors"
    save_file({"ids": reference["ids"]}, torch_file)
    run_stock(program, tmp_path, torch_file)
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["logits"], expected, **CLOSE)
