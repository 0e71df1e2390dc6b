"""The compiled decoding step against the plain one: logits, cache, recorded routing; and that it is one graph."""

import pytest
import torch

from jetmoe.decode import compiled_step, step
from tests.builders.decoding import PROMPT, decode
from tests.builders.toy_model import toy_model

pytestmark = pytest.mark.compiles


def test_compiled_step_equals_plain_step():
    """`fullgraph=True` inside: a graph break or a data-dependent branch would raise."""
    model = toy_model()
    plain, plain_trace = decode(model, lambda *args, **kwargs: step(model, *args, **kwargs))
    compiled, compiled_trace = decode(model, compiled_step(model))
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert (plain_trace.experts == compiled_trace.experts).all()
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_prefill_compiles_too():
    model = toy_model(num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected = model(PROMPT.repeat(1, 4), use_cache=False).logits
        torch.testing.assert_close(
            compiled(PROMPT.repeat(1, 4), use_cache=False).logits, expected, rtol=1e-4, atol=1e-5
        )
