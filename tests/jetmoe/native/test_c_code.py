"""The C files on their own: with sanitizers, and as built for other processors."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jetmoe import c_library
from jetmoe.nf4.tensor import quantize

HERE = Path(__file__).parent
NATIVE = Path(c_library.__file__).parent / "native"
NF4 = NATIVE.parent / "nf4"
SANITIZED = """
from jetmoe import c_library

c_library.FLAGS = (*c_library.FLAGS, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
import torch
from tests.builders.toy_model import toy_model
from tests.jetmoe.native import test_step

torch.set_num_threads(2)
for family in test_step.FAMILIES:
    odd = {"num_hidden_layers": 1, "intermediate_size": 33, "vocab_size": 101}
    test_step.assert_equal(toy_model(family=family, **odd), prompt=1, tokens=70)
    model = toy_model(family=family, **odd)
    test_step.adapted(model, "all+router", family)
    test_step.assert_equal(model)
    test_step.decode(model.bfloat16())
"""

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc and its sanitizers")


def build(source: Path, out: Path, *flags: str) -> Path:
    subprocess.run(["gcc", *flags, f"-I{NATIVE}", f"-I{NF4}", str(source), "-lm", "-o", str(out)], check=True)
    return out


@needs_gcc
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_threads_compute_every_unit_once(sanitizer, tmp_path):
    program = build(HERE / "threads_check.c", tmp_path / "check", "-O1", "-pthread", f"-fsanitize={sanitizer}")
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 threads, 0 faults\n", "")


@needs_gcc
@pytest.mark.processes
def test_steps_stay_inside_their_tensors():
    """Ten seconds, because torch is imported under the sanitizer, which then watches its tensors too."""
    libraries = [
        subprocess.run(["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout
        for name in ("asan", "ubsan")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(map(str.strip, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",  # of the interpreter
        "CC": "gcc",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SANITIZED],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@needs_gcc
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of this kind")
@pytest.mark.parametrize("processor", ["native", "haswell", "x86-64"])
def test_tiles_on_other_processors(processor, tmp_path):
    """Of the test machine's own instructions, AVX2, and none of either."""
    if processor == "haswell" and not torch.cpu._is_avx2_supported():
        pytest.skip("this processor has no AVX2")
    source = tmp_path / "tile.c"
    source.write_text('#include "tile.h"\nvoid (*const product)() = (void (*)())tile_product;\n')
    library = ctypes.CDLL(str(build(source, tmp_path / "tile.so", "-O3", f"-march={processor}", "-shared", "-fPIC")))
    product = ctypes.c_void_p.in_dll(library, "product").value
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_long] * 2, ctypes.c_void_p)(product)
    weight = torch.randn(1, 32, 192, generator=torch.Generator().manual_seed(0))
    parts, x = quantize(weight).parts.tile(), torch.randn(192, generator=torch.Generator().manual_seed(1))
    rounded, y = x.bfloat16(), torch.empty(32)
    call(x.data_ptr(), rounded.data_ptr(), parts.codes.data_ptr(), parts.absmax.data_ptr(), 32, 192, y.data_ptr())
    expected = parts.dequantize(torch.float32)[0] @ x
    torch.testing.assert_close(y, expected, rtol=2**-7, atol=2**-6 * float(expected.abs().max()))
