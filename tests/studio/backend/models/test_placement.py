"""Where a model goes and in what precision, what the page says of its memory, and running out of it."""

import re

import pytest
import torch

from jetmoe import device
from studio.backend.models import catalog, placement
from studio.backend.system import plan, zero_gpu
from studio.errors import StudioError

STARTER = catalog.entry("starter")
LARGE = catalog.entry("jetmoe/jetmoe-8b")
GIB = 2**30


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda: 64 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "capability", lambda device: (9, 0))


def test_automatic_is_what_the_catalog_says_on_a_cpu_and_4_bit_on_a_gpu(plenty, monkeypatch):
    assert placement.placement(LARGE, "auto").precision == "nf4"
    assert placement.placement(STARTER, "auto").precision != "nf4"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement.placement(STARTER, "auto") == placement.Placement("cuda", "nf4", torch.bfloat16)


def test_gpus_before_ampere_compute_in_fp16(plenty, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "capability", lambda device: (7, 5))
    for wanted, used in (("auto", "nf4"), ("nf4", "nf4"), ("bf16", "fp16")):
        assert placement.place_of(STARTER, wanted) == placement.Placement("cuda", used, torch.float16)
    assert placement.place_of(STARTER, "fp32").dtype == torch.float32


def test_what_is_loaded_first_is_what_the_hardware_of_a_space_is_for(plenty, monkeypatch):
    for name in ("STUDIO_MODEL", "SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    assert placement.first_model() == "starter"
    monkeypatch.setenv("SPACE_ID", "somebody/studio")
    assert placement.first_model() == "starter"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement.first_model() == "jetmoe/jetmoe-8b-chat"
    assert placement.placement(catalog.entry(placement.first_model()), "auto").precision == "nf4"
    monkeypatch.delenv("SPACE_ID")
    assert placement.first_model() == "starter", "nobody asked for so large a download"
    monkeypatch.setenv("STUDIO_MODEL", "jetmoe/jetmoe-8b")
    assert placement.first_model() == "jetmoe/jetmoe-8b"


def test_where_a_gpu_is_lent_later_the_model_waits_on_the_cpu(plenty, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(zero_gpu, "waits", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert placement.placement(STARTER, "auto") == placement.Placement("cpu", "bf16", torch.bfloat16, "")


def test_what_a_processor_lacks_is_said(plenty, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    slow = placement.placement(STARTER, "nf4")
    assert "AVX512-BF16" in slow.notice and slow.dtype == torch.float32
    wide = placement.placement(STARTER, "bf16")
    assert wide.precision == "fp32" and "no native bf16" in wide.notice
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert placement.placement(STARTER, "nf4").notice == ""


def test_too_little_memory_is_said_before_loading(plenty, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda: 10 * GIB)
    assert placement.placement(LARGE, "nf4").device == "cpu"
    for has_bf16, needed in ((True, "18.0"), (False, "36.0")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has_bf16=has_bf16: has_bf16)
        with pytest.raises(StudioError, match=f"needs {needed} GiB of memory and 10.0 GiB are free: load it in nf4"):
            placement.placement(LARGE, "bf16")


def test_one_gpu_must_hold_the_model_and_several_share_it(plenty, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (5 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StudioError, match=r"in nf4 needs 6\.5 GiB of memory and 5\.0 GiB are free"):
        placement.placement(LARGE, "auto")
    assert placement.placement(LARGE, "auto", loaded_gib=2).device == "cuda", "a loaded model is unloaded for it"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (
        placement.placement(LARGE, "auto").precision == "nf4"
        and placement.free_gib(placement.place_of(LARGE, "auto")) == 10
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_running_out_of_memory_is_a_sentence(error):
    with (
        pytest.raises(StudioError, match="ran out of memory while answering: lower it"),
        placement.shortage("while answering: lower it"),
    ):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), placement.shortage("while answering"):
        raise RuntimeError("shape mismatch")


def test_an_unknown_precision_is_refused():
    with pytest.raises(StudioError, match="auto, nf4, bf16, fp32"):
        placement.check_precision("int3")


def test_a_gpu_that_torch_can_not_use_is_said(plenty, monkeypatch, tmp_path):
    """On a Space it is paid for."""
    monkeypatch.setattr(placement, "NVIDIA", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert placement.unused_gpu() == ""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("SPACE_ID", "me/studio")
    said = "This Space has a GPU that torch can't use: .* for CUDA 13.0, which the driver may be too old for"
    assert re.match(said, placement.place_of(STARTER, "auto").warning)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert placement.unused_gpu() == "", "it was hidden on purpose"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placement.unused_gpu() == ""
