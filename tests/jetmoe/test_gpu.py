"""What only a CUDA device can show; run by `make gpu-check`."""

import pytest
import torch
from transformers import StaticCache

from jetmoe.decode import compiled_step, step
from tests.builders.toy_model import toy_model

pytestmark = pytest.mark.gpu
WIDE = {"hidden_size": 64, "intermediate_size": 64, "kv_channels": 16, "num_hidden_layers": 3}


@torch.no_grad()
def test_grouped_products_agree_with_the_cpu():
    model = toy_model(**WIDE)
    ids = torch.randint(3, 99, (2, 48))
    expected = model(ids).logits
    logits = model.to("cuda", torch.bfloat16)(ids.cuda()).logits
    torch.testing.assert_close(logits.float().cpu(), expected, rtol=0.1, atol=0.1)


@torch.no_grad()
def test_decode_never_waits_for_the_device():
    model = toy_model(**WIDE).to("cuda", torch.bfloat16)
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(torch.randint(3, 99, (1, 9)).cuda(), past_key_values=cache)
    token, position = torch.tensor([[5]]).cuda(), torch.tensor([[9]]).cuda()
    step(model, token, position, cache)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, token, position + 1, cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_compiled_step_agrees():
    model = toy_model(**WIDE).cuda()
    run, logits = compiled_step(model), []
    for decode in (lambda *args: step(model, *args), run):
        cache = StaticCache(config=model.config, max_cache_len=64)
        model(torch.arange(3, 12).unsqueeze(0).cuda(), past_key_values=cache)
        logits.append(decode(torch.tensor([[5]]).cuda(), torch.tensor([[9]]).cuda(), cache))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
