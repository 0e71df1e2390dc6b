"""The shortcut over the k likeliest tokens draws from the same distribution as transformers' whole chain."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from studio.backend.chat.sampling import Sampler, Sampling

LOGITS = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)) * 3
SEEN = torch.tensor([[3, 5, 5, 9]])


@pytest.mark.parametrize(("top_k", "min_p"), [(0, 0.0), (0, 0.05), (1, 0.0), (20, 0.05)])
def test_distribution_is_transformers(top_k, min_p):
    sampling = Sampling(temperature=0.8, top_p=0.9, top_k=top_k, min_p=min_p, repetition_penalty=1.3, seed=0)
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8)])
    chain += [TopKLogitsWarper(top_k)] if top_k else []
    chain += [TopPLogitsWarper(0.9)] + ([MinPLogitsWarper(min_p)] if min_p else [])
    expected = chain(SEEN, LOGITS.clone()).softmax(-1)[0]
    sampler = Sampler(sampling)
    drawn = [sampler.choose(LOGITS, SEEN)[0] for _ in range(1500)]
    counts = torch.bincount(torch.tensor(drawn), minlength=200) / 1500
    assert not counts[expected == 0].any()
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.05)


def test_temperature_zero_is_greedy_and_reports_the_models_own_probability():
    token, logprob = Sampler(Sampling(temperature=0.0, repetition_penalty=1.0)).choose(LOGITS, SEEN)
    assert token == int(LOGITS.argmax())
    assert logprob == pytest.approx(float(LOGITS.log_softmax(-1).max()), abs=1e-5)
