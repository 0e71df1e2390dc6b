"""The kernel for 4-bit experts on CUDA: its numbers under Triton's interpreter, its code for a GPU that is not there.

    python -m tests.jetmoe.test_nf4_triton OUT_FILE

Writes what the interpreter computes for CASES, in a process of its own: Triton decides at import whether to interpret.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from jetmoe.nf4.parts import Parts, empty
from jetmoe.nf4.tensor import quantize

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is only there for Linux")
EXPERTS = 5
# A result in 16 bits may be rounded either way, and the interpreter cuts bf16 off.
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 2**-10, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5},
}


class Case(NamedTuple):
    output_size: int = 30
    input_size: int = 576
    chosen: tuple[int, ...] = (3, 3, 0, 4, 3, 1)
    repeat: int = 2
    double: bool = False
    dtype: torch.dtype = torch.float32

    def make(self, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor, Parts]:
        """Rows, experts and weights; outputs are about 1."""
        random = torch.Generator().manual_seed(self.input_size + len(self.chosen))
        weight = torch.randn(EXPERTS, self.output_size, self.input_size, generator=random) * self.input_size**-0.5
        rows = torch.randn(len(self.chosen) // self.repeat, self.input_size, generator=random)
        parts = quantize(weight.to(device), self.double).parts
        return rows.to(device, self.dtype), torch.tensor(self.chosen, device=device), parts

    def expected(self, rows: torch.Tensor, parts: Parts) -> torch.Tensor:
        weight = parts.dequantize(torch.float32)
        products = [weight[e] @ rows[a // self.repeat].float() for a, e in enumerate(self.chosen)]
        return torch.stack(products).to(self.dtype)


CASES = {
    **{
        f"in {input_size}, {str(dtype).removeprefix('torch.')}{', double' * double}": Case(
            input_size=input_size, double=double, dtype=dtype
        )
        for input_size, dtypes in ((64, [torch.float32]), (192, [torch.bfloat16]), (576, CLOSE))
        for dtype in dtypes
        for double in (False, True)
    },
    "one assignment": Case(chosen=(4,), repeat=1),
    "three rows": Case(chosen=(1, 4, 1), repeat=1),
    "three assignments of one row": Case(chosen=(2, 0, 2), repeat=3, double=True),
    "six rows": Case(repeat=1, double=True),
    "one output": Case(output_size=1),
    "whole programs": Case(output_size=64, input_size=1024, double=True),
    "many outputs": Case(output_size=520, input_size=64, chosen=(3,), repeat=1, double=True),
}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("triton") / "results.safetensors"
    command = [sys.executable, "-m", "tests.jetmoe.test_nf4_triton", str(out)]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True)
    return load_file(out)


@pytest.mark.processes
@pytest.mark.parametrize("name", CASES)
def test_equals_dequantized_weights(interpreted, name):
    case = CASES[name]
    rows, _, parts = case.make()
    torch.testing.assert_close(interpreted[name], case.expected(rows, parts), **CLOSE[case.dtype])


@pytest.mark.parametrize("output_size,input_size", [(11264, 2048), (2048, 5632), (2048, 2048), (70, 576)])
@pytest.mark.parametrize("double", [False, True])
def test_compiles_for_a_gpu(monkeypatch, tmp_path, output_size, input_size, double):
    """The compiler needs no GPU; the interpreter takes code that it refuses."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compiled_for(90, "*bf16", output_size, input_size, double)
    # Codes are fetched ahead, 16 at a time: otherwise the kernel would wait for memory at every step.
    assert re.search("async_copy_global_to_local.*contiguity = 16", compiled.asm["ttgir"])


@pytest.mark.parametrize("capability,rows", [(75, "*fp16"), (80, "*bf16"), (100, "*bf16")])
def test_compiles_for_other_gpus(monkeypatch, tmp_path, capability, rows):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled_for(capability, rows, 2048, 2048, double=True)


def compiled_for(capability: int, rows: str, output_size: int, input_size: int, double: bool):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from jetmoe.nf4 import triton as nf4_triton

    kernel = nf4_triton._chosen_linear
    constants = nf4_triton._constants(empty((EXPERTS, output_size, input_size), double, "meta"))
    types = {"rows": rows, "experts": "*i64", "codes": "*u8", "result": rows, "repeat": "i32"}
    types |= {"absmax": "*u8" if double else "*fp32", "values": "*fp32"}
    nested = ("nested_absmax", "nested_offset", "nested_values")
    if double:
        types |= dict.fromkeys(nested, "*fp32")
    else:
        constants |= dict.fromkeys(nested)
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": nf4_triton.WARPS})
    assert compiled.asm["cubin"]
    return compiled


@pytest.mark.parametrize(
    "change,message",
    [
        ({"parts": empty((EXPERTS, 64, 128), tiled=True)}, "in tiles"),
        ({"parts": Parts(*(part[:, ::2] for part in empty((EXPERTS, 128, 128))[:2]))}, "strided"),
        ({"rows": torch.zeros(2, 128, dtype=torch.float64)}, "float64"),
        ({"rows": torch.zeros(2, 64)}, r"\[A, 128\]"),
        ({"rows": torch.zeros(128)}, r"\[A, 128\]"),
        ({"rows": torch.zeros(3, 128)}, "4 assignments cannot share 3 rows"),
        ({"rows": torch.zeros(0, 128)}, "4 assignments cannot share 0 rows"),
        ({"experts": torch.zeros(2, 2, dtype=torch.int64)}, "int64"),
        ({"experts": torch.zeros(4, dtype=torch.int32)}, "int32"),
    ],
)
def test_refuses_what_it_cannot_read(change, message):
    from jetmoe.nf4.triton import chosen_linear

    fine = {"rows": torch.zeros(2, 128), "experts": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        chosen_linear(**{**fine, "parts": empty((EXPERTS, 64, 128)), **change})


def main(out: Path) -> None:
    from jetmoe.nf4.triton import chosen_linear

    save_file({name: chosen_linear(*case.make()) for name, case in CASES.items()}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
