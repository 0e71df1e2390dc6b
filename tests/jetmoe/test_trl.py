"""The script of docs/python.md that trains with TRL, as it stands there, on a toy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from jetmoe import JetMoeForCausalLM
from tests.builders.stock import run_stock
from tests.builders.toy_folder import toy_folder, toy_rows

ROOT = Path(__file__).parents[2]
IDS = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))
STOCK = """
import sys, peft
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "starter"), folder / "adapter")
save_file({"logits": model(load_file(folder / "ids.safetensors")["ids"]).logits.detach()}, folder / "stock.safetensors")
"""


COMPILED = 'max_steps=1, torch_compile=True, torch_compile_backend="aot_eager"'
"""Without the C++ of Inductor, which takes minutes."""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("settings", "layers"),
    [("max_steps=3", 2), pytest.param(COMPILED, 1, marks=pytest.mark.compiles)],
    ids=["eager", "compiled"],
)
def test_the_script_of_the_docs_trains_an_adapter_that_stock_peft_loads(settings, layers, tmp_path):
    (script,) = re.findall(
        r"```python\n(import jetmoe\nfrom datasets.*?)```", (ROOT / "docs/python.md").read_text(), re.S
    )
    assert len(script.splitlines()) <= 20 and "max_steps=20" in script
    (tmp_path / "sft.py").write_text(script.replace("max_steps=20", f"{settings}, learning_rate=0.1"))
    toy_folder(tmp_path / "starter", num_hidden_layers=layers)
    toy_rows(tmp_path / "rows.jsonl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "sft.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]

    base = JetMoeForCausalLM.from_pretrained(tmp_path / "starter").eval()
    with torch.no_grad():
        untrained = base(IDS).logits
        trained = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(IDS).logits
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(factors) == 10 * layers and all(one.any() for name, one in factors.items() if ".lora_B." in name)
    assert (trained - untrained).abs().max() > 0.1
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    run_stock(STOCK, tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "stock.safetensors")["logits"], trained, rtol=1e-4, atol=1e-4)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
