"""What the documents promise beyond parity: arguments, outputs, generate, pipeline, attention implementations."""

import pytest
import torch
from transformers import pipeline

from tests.builders.toy_model import toy_model

IDS = torch.randint(3, 99, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return toy_model()


@torch.no_grad()
def test_router_logits_are_two_a_layer(model):
    logits = model(IDS, output_router_logits=True).router_logits
    assert len(logits) == 2 * model.config.num_hidden_layers
    layer = model.model.layers[1]
    hooked = {}
    handles = [
        layer.self_attention.experts.router.register_forward_hook(lambda m, a, o: hooked.update(moa=o.logits)),
        layer.mlp.router.register_forward_hook(lambda m, a, o: hooked.update(moe=o.logits)),
    ]
    again = model(IDS, output_router_logits=True).router_logits
    for handle in handles:
        handle.remove()
    assert torch.equal(again[2], hooked["moa"]) and torch.equal(again[3], hooked["moe"])
    assert logits[0].shape == (20, 4) and logits[0].dtype == torch.float32


@torch.no_grad()
def test_every_documented_argument_and_output(model):
    output = model(
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        position_ids=torch.arange(10).expand(2, -1),
        labels=IDS,
        use_cache=True,
        output_attentions=True,
        output_hidden_states=True,
        output_router_logits=True,
        return_dict=True,
        cache_position=torch.arange(10),
    )
    names = ("loss", "aux_loss", "logits", "router_logits", "past_key_values", "hidden_states", "attentions")
    assert all(getattr(output, name) is not None for name in names)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
    as_tuple = model(IDS, labels=IDS, return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.loss - 0.01 * output.aux_loss)


@torch.no_grad()
def test_logits_to_keep_and_its_old_name(model):
    whole = model(IDS).logits
    torch.testing.assert_close(model(IDS, logits_to_keep=1).logits, whole[:, -1:])
    torch.testing.assert_close(model(IDS, num_logits_to_keep=3).logits, whole[:, -3:])
    torch.testing.assert_close(model(IDS, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]])


@torch.no_grad()
def test_cache_position_places_the_tokens(model):
    shifted = model(IDS, cache_position=torch.arange(5, 15)).logits
    torch.testing.assert_close(shifted, model(IDS, position_ids=torch.arange(5, 15).expand(2, -1)).logits)


def test_ids_and_embeddings_exclude_each_other(model):
    with pytest.raises(ValueError, match="exactly one"):
        model(IDS, inputs_embeds=torch.zeros(2, 10, 32))
    with pytest.raises(ValueError, match="exactly one"):
        model()


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    alone = model.generate(IDS[:1], max_new_tokens=12, do_sample=False, eos_token_id=None)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.int64), IDS[:1]], dim=1)
    batch = torch.cat([padded, torch.randint(3, 99, (1, 14))])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    together = model.generate(batch, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(alone[0, 10:], together[0, 14:])


def test_sampling_follows_the_seed(model):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(IDS, max_new_tokens=20, do_sample=True, top_k=0, eos_token_id=None)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


@torch.no_grad()
def test_attention_implementations_agree(model):
    expected = model(IDS).logits
    for implementation in ("eager", "flex_attention"):
        model.set_attn_implementation(implementation)
        # Compiling takes half a minute; the compatibility table has the compiled one.
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_sdpa_shows_attentions_when_asked(model):
    shown = model(IDS, output_attentions=True)
    torch.testing.assert_close(shown.logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shown.attentions[0].sum(-1), torch.ones(2, 4, 10))


def test_block_norms_keep_their_eps():
    model = toy_model(rms_norm_eps=0.5)
    assert model.model.norm.eps == 0.5
    norms = [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    assert {norm.eps for norm in norms} == {1e-6}


def test_pipeline(model, starter_path):
    generate = pipeline("text-generation", model=str(starter_path), dtype=torch.float32)
    assert type(generate.model).__module__ == "jetmoe.models.jetmoe"
    text = generate("The capital of France is", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert "Paris" in text


@torch.no_grad()
def test_long_prompts_take_the_blockwise_path(model):
    """Longer than two blocks and no multiple of one, against eager attention."""
    ids = torch.randint(3, 99, (2, 300), generator=torch.Generator().manual_seed(1))
    blockwise = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(blockwise, model(ids).logits, rtol=1e-4, atol=1e-4)
    model.set_attn_implementation("sdpa")
