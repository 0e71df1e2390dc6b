"""Decoding with the native step, and with the eager one, which it must equal."""

import copy

import torch
from transformers import StaticCache

from jetmoe import RoutingRecorder
from jetmoe.decode import step
from jetmoe.native.step import NativeStep

IDS = torch.randint(3, 99, (90,), generator=torch.Generator().manual_seed(0)).tolist()


@torch.no_grad()
def decode(model, native=True, prompt=9, tokens=8):
    """Return the logits after each token `[tokens, vocabulary]`, and the recorder."""
    recorder, cache = RoutingRecorder(model, 128), StaticCache(config=model.config, max_cache_len=prompt + tokens)
    model(torch.tensor([IDS[:prompt]]), past_key_values=cache, recorder=recorder)
    run = NativeStep(model) if native else None
    logits = []
    for position, token in enumerate(IDS[prompt : prompt + tokens], start=prompt):
        if run is not None:
            logits.append(run(token, cache, recorder))
        else:
            logits.append(step(model, torch.tensor([[token]]), torch.tensor([[position]]), cache, recorder))
    return torch.cat(logits), recorder


def assert_equal(model, **lengths):
    """The native step is the eager one, within 1e-5 of the largest logit, and routes to the same experts."""
    (native, recorded), (eager, expected) = decode(model, **lengths), decode(model, native=False, **lengths)
    assert native.shape == eager.shape and native.dtype == eager.dtype
    assert (native - eager).abs().max() <= 1e-5 * eager.abs().max()
    assert recorded.length == expected.length and torch.equal(recorded.experts, expected.experts)
    torch.testing.assert_close(recorded.logits, expected.logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def assert_same_in_company(model, lengths, tokens=3):
    """Sequences of these lengths get the same bits one by one and all in one step: logits, caches and routing."""
    run, starts = NativeStep(model), []
    for number, length in enumerate(lengths):
        recorder, cache = RoutingRecorder(model, 80), StaticCache(config=model.config, max_cache_len=80)
        model(torch.tensor([IDS[number : number + length]]), past_key_values=cache, recorder=recorder)
        starts.append((cache, recorder))
    company = copy.deepcopy(starts)
    for token in IDS[20 : 20 + tokens]:
        alone = [run(token + number, *start) for number, start in enumerate(starts)]
        together = run.together([run.prepare(token + number, *start) for number, start in enumerate(company)])
        assert torch.equal(together, torch.cat(alone))
    for (cache, recorder), (other_cache, other) in zip(starts, company, strict=True):
        assert torch.equal(recorder.logits, other.logits) and torch.equal(recorder.experts, other.experts)
        assert all(torch.equal(a.keys, b.keys) for a, b in zip(cache.layers, other_cache.layers, strict=True))
