"""The decoder at toy size: its cache against a plain forward, native steps, and compiled steps as on a GPU."""

from functools import partial

import peft
import pytest
import torch

from jetmoe import c_library
from jetmoe.decode import step
from jetmoe.lora import lora_config
from studio.backend.chat.cache import cache_size
from studio.backend.chat.compiled_steps import CompiledSteps
from studio.backend.chat.decoder import Decoder
from tests.builders.toy_model import toy_model
from tests.builders.waiting import until

IDS = torch.randint(3, 99, (30,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def decoder(monkeypatch):
    monkeypatch.setattr("studio.backend.chat.cache.SMALLEST_CACHE", 16)
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


def test_one_text_gives_the_same_logits_in_every_cache(decoder):
    """Whatever was answered before, in a cache of any length, and with other weights in between."""
    results = []
    for room in (2, 12, 60):
        decoder.prefill(IDS[:15], room=room, reuse=False)
        results.append(torch.cat([decoder.step(token) for token in IDS[15:17]]))
        decoder.change_model(lambda: None)
    assert decoder.cache_length == 128
    assert all(torch.equal(result, results[0]) for result in results)


# --- native steps


def test_steps_on_a_cpu_are_native(decoder):
    assert decoder.steps.text == "native"
    decoder.prefill(IDS[:20], room=10)
    check(decoder, IDS[:21], decoder.step(IDS[20]))
    trace = decoder.trace([""] * 21, prompt_tokens=20)
    decoder.prefill(IDS[:21], room=0, reuse=False)
    assert (decoder.trace([""] * 21, prompt_tokens=21).experts == trace.experts).all()


def test_native_steps_follow_the_adapter(decoder):
    def add_adapter():
        peft.get_peft_model(decoder.model, lora_config("all", r=2, init_lora_weights=False)).eval()

    decoder.prefill(IDS[:20], room=10)
    before = decoder.step(IDS[20])
    decoder.change_model(add_adapter)
    decoder.prefill(IDS[:20], room=10)
    after = decoder.step(IDS[20])
    check(decoder, IDS[:21], after)
    assert not torch.equal(before, after) and decoder.steps.text == "native"


def test_without_a_compiler_steps_are_eager_and_say_why(monkeypatch):
    monkeypatch.setattr(c_library, "built", lambda source: (None, "No C compiler was found; install gcc."))
    decoder = Decoder(toy_model(), context_size=128)
    assert decoder.steps.text == "eager: No C compiler was found; install gcc."
    decoder.prefill(IDS[:9], room=1)
    check(decoder, IDS[:10], decoder.step(IDS[9]))


def test_an_adapter_that_is_not_native_is_eager_and_says_why(decoder):
    def add_dora():
        peft.get_peft_model(decoder.model, peft.LoraConfig(target_modules=["kv_proj"], use_dora=True)).eval()

    decoder.change_model(add_dora)
    decoder.prefill(IDS[:9], room=1)
    check(decoder, IDS[:10], decoder.step(IDS[9]))
    assert decoder.steps.text.startswith("eager: C code can't compute this adapter, because it uses Dora")


# --- compiled steps, as on a GPU


@pytest.fixture
def compiled(decoder):
    decoder.steps = CompiledSteps(decoder.model, 128, record=True)
    return decoder.steps


def compile_with(monkeypatch, run):
    """Takes the place of the compiler, which needs a GPU."""
    monkeypatch.setattr("studio.backend.chat.compiled_steps.compiled_step", lambda model: partial(run, model))


def test_compiled_steps_take_over(decoder, compiled, monkeypatch):
    lengths = []

    def run(model, token, position, cache, **kwargs):
        lengths.append(cache.layers[0].max_cache_len)
        return step(model, token, position, cache, **kwargs)

    compile_with(monkeypatch, run)
    compiled.enable()
    until(lambda: compiled.text == "compiled")
    decoder.prefill(IDS[:8], room=8)
    lengths.clear()
    check(decoder, IDS[:9], decoder.step(IDS[8]))
    assert lengths == [16]


def test_eager_steps_are_right_while_another_thread_compiles(decoder, compiled, monkeypatch):
    """torch's flag for "compiling" is one for all threads; plain steps must not take the compiled steps' paths."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    check(decoder, IDS[:20], decoder.prefill(IDS[:20], room=10))
    check(decoder, IDS[:21], decoder.step(IDS[20]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_failed_compilation_is_said_and_steps_go_on(decoder, compiled, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no space left on device")

    compile_with(monkeypatch, broken)
    compiled.enable()
    until(lambda: "failed" in compiled.text)
    assert compiled.text.startswith("eager: compiling failed with RuntimeError")
    decoder.prefill(IDS[:9], room=1)
    check(decoder, IDS[:10], decoder.step(IDS[9]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_steps_of_older_weights_are_dropped_after_a_failure_too(decoder, compiled, monkeypatch):
    def only_short(model, token, position, cache, **kwargs):
        if cache.layers[0].max_cache_len > 16:
            raise RuntimeError("no space left on device")

    compile_with(monkeypatch, only_short)
    compiled.enable()
    until(lambda: compiled.ready == {16})
    compiled.request(32)
    until(lambda: "failed" in compiled.text)
    assert compiled.ready == {16}, "they are still right"
    decoder.change_model(lambda: None)
    assert not compiled.ready and "failed" in compiled.text
    compiled.resume()
    assert not compiled.enabled, "what failed once is not tried again"
