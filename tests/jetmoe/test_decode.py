"""Reading a prompt, compiled. Decoding steps are compiled in `test_decoder.py`, with an adapter in `test_lora.py`, and
in 4 bits in `test_nf4.py`."""

import pytest
import torch

from tests.builders.decoding import PROMPT
from tests.builders.toy_model import toy_model

pytestmark = pytest.mark.compiles


def test_prefill_compiles_too():
    model = toy_model(num_hidden_layers=1)
    # Traced as for inductor, without its half minute of g++; the tests of decoding steps generate code.
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        expected = model(PROMPT.repeat(1, 4), use_cache=False).logits
        torch.testing.assert_close(
            compiled(PROMPT.repeat(1, 4), use_cache=False).logits, expected, rtol=1e-4, atol=1e-5
        )
