"""`make gpu-check` without a GPU: its steps at the size of a toy, with what they need and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import check

# Compiles six toys, and starts two processes; `python -m tests.gpu.check --toy` has all steps.
SLOW = {
    "correctness.toys",
    "model_speed.four_layers",
    "model_speed.decoding",
    "model_speed.prompts",
    "model_speed.several",
}
WITHOUT_PACKAGES = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        return None if name.partition(".")[0] in {missing} else super().find_spec(name, *args)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from tests.gpu.check import run_step
for step in {steps}:
    run_step(step, "cpu")
"""
MISSING = {"gguf", "platformdirs", "gradio", "datasets", "spaces", "sklearn", "markdown_it", "uvloop"}


@pytest.mark.processes
def test_the_steps_need_few_packages():
    steps = [step.function for step in check.STEPS if step.function not in SLOW]
    code = WITHOUT_PACKAGES.format(missing=MISSING, steps=steps)
    done = subprocess.run([sys.executable, "-c", code], cwd=check.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stderr + done.stdout
    for row in ("| bitsandbytes |", "an expert without tokens", "4 bits, prompt |", "| causal, grouped |", "| nf4 |"):
        assert row in done.stdout


def test_every_step_is_a_function():
    for step in check.STEPS:
        module, function = step.function.split(".")
        assert f"def {function}(place" in (Path(check.__file__).parent / f"{module}.py").read_text()


def test_the_limits_fit_into_the_whole_and_training_comes_before_what_compiles():
    assert sum(step.seconds for step in check.STEPS) <= check.MOST_S
    order = [step.function for step in check.STEPS]
    assert order.index("model_speed.training") < order.index("model_speed.four_layers")


def test_a_step_that_fails_costs_its_own_rest(tmp_path, monkeypatch):
    script = tmp_path / "step.py"
    script.write_text("import sys\nprint('| row | 1 |', flush=True)\nsys.exit('broken' if sys.argv[1] == 'a' else 0)")
    monkeypatch.setattr(check, "command_of", lambda step, toy: [sys.executable, str(script), step.function])
    file = tmp_path / "report.md"
    steps = (check.Step("First", "a", 9), check.Step("Second", "b", 9))
    assert check.run_all(steps, file, {}, toy=True) == ["First"]
    report = file.read_text()
    assert report.count("| row | 1 |") == 2 and "broken" in report and "## Second" in report
    monkeypatch.setattr(check, "MOST_S", 0)
    assert check.run_all(steps, file, {}, toy=True) == ["First", "Second"]
    assert "ten minutes are over" in file.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert check.main([]) == 2
    assert "needs a CUDA device and finds none" in capsys.readouterr().err
