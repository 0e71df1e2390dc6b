"""The decoder at toy size: its cache against a plain forward, steps while another thread compiles, compiler trouble."""

import pytest
import torch

from studio.backend.chat.decoder import Decoder, cache_size
from tests.builders.toy_model import toy_model
from tests.builders.waiting import until

IDS = torch.randint(3, 99, (30,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def decoder(monkeypatch):
    monkeypatch.setattr("studio.backend.chat.decoder.SMALLEST_CACHE", 16)
    monkeypatch.setattr("studio.backend.chat.decoder.PREFILL_TOKENS", 7)
    return Decoder(toy_model(), context_size=128)


@torch.no_grad()
def plain_logits(decoder, ids):
    return decoder.model(torch.tensor([ids]), use_cache=False).logits[:, -1]


def check(decoder, ids, logits):
    torch.testing.assert_close(logits, plain_logits(decoder, ids), rtol=1e-4, atol=1e-5)


def test_prefill_in_pieces_then_steps(decoder):
    check(decoder, IDS[:20], decoder.prefill(IDS[:20], room=10))
    for i in range(20, 30):
        check(decoder, IDS[: i + 1], decoder.step(IDS[i]))
    assert decoder.token_ids == IDS


def test_another_prompt_keeps_what_both_begin_with(decoder):
    decoder.prefill(IDS[:20], room=5)
    other = [*IDS[:12], 7, 7, 7]
    read = []
    plain = decoder._read
    decoder._read = lambda ids: (read.extend(ids), plain(ids))[1]
    check(decoder, other, decoder.prefill(other, room=5))
    assert read == [7, 7, 7]
    check(decoder, IDS[:12], decoder.prefill(IDS[:12], room=5))
    trace = decoder.trace([""] * 12, prompt_tokens=12)
    assert trace.token_ids.tolist() == IDS[:12]


def test_a_longer_answer_gets_a_larger_cache(decoder):
    decoder.prefill(IDS[:10], room=2)
    assert decoder.cache_length == 16
    check(decoder, IDS, decoder.prefill(IDS, room=60))
    assert decoder.cache_length == 128
    assert [cache_size(n, 128) for n in (1, 16, 17, 100, 128)] == [16, 16, 32, 128, 128]


def test_steps_are_right_while_another_thread_compiles(decoder, monkeypatch):
    """torch's flag for "compiling" is one for all threads; plain steps must not take the compiled steps' paths."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    check(decoder, IDS[:20], decoder.prefill(IDS[:20], room=10))
    check(decoder, IDS[:21], decoder.step(IDS[20]))


@pytest.mark.compiles
def test_compiled_steps_take_over_and_agree(decoder):
    decoder.compiled.enable()
    until(lambda: decoder.compiled.text == "compiled", 300)
    decoder.prefill(IDS[:8], room=8)
    assert decoder.compiled.get(decoder.cache_length) is not None
    recompiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for i in range(8, 16):
        check(decoder, IDS[: i + 1], decoder.step(IDS[i]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == recompiled
    compiled = decoder.trace([""] * 16, prompt_tokens=8)
    decoder.prefill(IDS[:16], room=0)
    decoder.token_ids = []
    decoder.prefill(IDS[:16], room=0)
    assert (decoder.trace([""] * 16, prompt_tokens=8).experts == compiled.experts).all()


def test_no_compiler_is_said(decoder, monkeypatch):
    monkeypatch.setattr("studio.backend.chat.decoder.cpp_compiler", lambda: None)
    decoder.compiled.enable()
    assert "no C++ compiler" in decoder.compiled.text and "install g++" in decoder.compiled.text
    check(decoder, IDS[:9], decoder.prefill(IDS[:9], room=1))


def test_4_bit_weights_that_can_not_be_compiled_are_said_and_not_tried(decoder, monkeypatch):
    monkeypatch.setattr("studio.backend.chat.decoder.quantized_share", lambda model: 0.93)
    monkeypatch.setattr("jetmoe.nf4.cpu.supported", lambda: False)
    decoder.compiled.enable()
    assert "4-bit" in decoder.compiled.text and not decoder.compiled.enabled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_failed_compilation_is_said_and_steps_go_on(decoder, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no space left on device")

    monkeypatch.setattr("studio.backend.chat.decoder.compiled_step", lambda model: broken)
    decoder.compiled.enable()
    until(lambda: "failed" in decoder.compiled.text)
    assert decoder.compiled.text.startswith("eager: compiling failed with RuntimeError")
    decoder.prefill(IDS[:9], room=1)
    check(decoder, IDS[:10], decoder.step(IDS[9]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_steps_of_older_weights_are_dropped_after_a_failure_too(decoder, monkeypatch):
    def only_short(token, position, cache, **kwargs):
        if cache.layers[0].max_cache_len > 16:
            raise RuntimeError("no space left on device")

    monkeypatch.setattr("studio.backend.chat.decoder.compiled_step", lambda model: only_short)
    decoder.compiled.enable()
    until(lambda: decoder.compiled.get(16) is only_short)
    decoder.compiled.request(32)
    until(lambda: "failed" in decoder.compiled.text)
    assert decoder.compiled.get(16) is only_short, "they are still right"
    decoder.change_model(lambda: None)
    assert decoder.compiled.get(16) is None and "failed" in decoder.compiled.text
    decoder.compiled.resume()
    assert not decoder.compiled.enabled, "what failed once is not tried again"
