"""The compiled decoding step against the plain one: logits, cache, recorded routing; and that it is one graph."""

import torch
from transformers import StaticCache

from jetmoe import RoutingRecorder
from jetmoe.decode import compiled_step, step
from tests.jetmoe.toy import toy_model

PROMPT = torch.randint(3, 99, (1, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def decode(model, run, tokens=6):
    recorder = RoutingRecorder(model, 64)
    cache = StaticCache(config=model.config, max_cache_len=32)
    logits = [model(PROMPT, past_key_values=cache, recorder=recorder).logits[:, -1]]
    for i in range(tokens):
        token = torch.tensor([[5 + 3 * i]])
        logits.append(run(token, torch.tensor([[9 + i]]), cache, recorder=recorder))
    return torch.stack(logits), recorder.trace(range(9 + tokens), [""] * (9 + tokens), False)


def test_compiled_step_equals_plain_step():
    """`fullgraph=True` inside: a graph break or a data-dependent branch would raise."""
    model = toy_model(num_hidden_layers=3)
    plain, plain_trace = decode(model, lambda *args, **kwargs: step(model, *args, **kwargs))
    compiled, compiled_trace = decode(model, compiled_step(model))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert (plain_trace.experts == compiled_trace.experts).all()
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_prefill_compiles_too():
    model = toy_model()
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected = model(PROMPT.repeat(1, 4), use_cache=False).logits
        torch.testing.assert_close(
            compiled(PROMPT.repeat(1, 4), use_cache=False).logits, expected, rtol=1e-4, atol=1e-5
        )
