"""`python -m studio doctor`: check this machine and who can reach the page, with a remedy for each problem.

examine(Exposure.from_environment())["ok"]
examine(Exposure("0.0.0.0"), deep=True)      # also answers and trains a little, in child processes
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.requirements import Requirement

from studio.backend.hosting.exposure import Exposure
from studio.backend.models import starter
from studio.backend.system.home import home
from studio.backend.system.plan import available_memory, free_disk
from studio.backend.system.process import ROOT, run_json
from studio.errors import StudioError

NEED_DISK_GIB = 3.0
NEED_MEMORY_GIB = 2.5
PINNED = ("gradio", "torch", "transformers", "peft", "bitsandbytes")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY")
# Variables that make Gradio expose what the studio keeps closed.
OPENING = ("GRADIO_ALLOWED_PATHS", "GRADIO_VIBE_MODE", "GRADIO_LOCAL_DEV_MODE", "GRADIO_SHARE", "GRADIO_PROFILING")


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str
    remedy: str = ""


def examine(exposure: Exposure, deep: bool = False, model: str = "starter") -> dict[str, Any]:
    """Return `{"ok", "checks": [{"name", "ok", "detail", "remedy"}]}`; `ok` is whether all checks passed.

    Args:
        deep: also load torch, build the page, answer and train with `model`; takes about a minute.
    """
    checks: list[Callable[[], Check]] = [
        _python, _versions, _memory, _disk, _starter, _compiler,
        lambda: _exposure(exposure), lambda: _secrets(exposure), _opened,
    ]  # fmt: skip
    if deep:
        checks += [_torch, _bf16, _page, lambda: _answers(model), lambda: _trains(model)]
    done = [check() for check in checks]
    return {"ok": all(check.ok for check in done), "checks": [asdict(check) for check in done]}


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "Install Python 3.11 or 3.12.")


def _versions() -> Check:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]
    wanted = {each.name: each for each in requirements}
    found = {name: _installed(name) for name in PINNED}
    wrong = [
        f"{name} {found[name] or 'is missing'}, not {wanted[name].specifier}"
        for name in PINNED
        if not found[name] or not wanted[name].specifier.contains(found[name], prereleases=True)
    ]
    detail = "; ".join(wrong) or ", ".join(f"{name} {found[name]}" for name in PINNED)
    return Check("versions", not wrong, detail, "Run `pip install -r requirements.txt`, or `make setup`.")


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def _torch() -> Check:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return Check("torch", True, f"{version('torch')} on {device}")


def _memory() -> Check:
    gib = available_memory() / 2**30
    return Check("memory", gib >= NEED_MEMORY_GIB, f"{gib:.1f} GiB free", f"The starter needs {NEED_MEMORY_GIB} GiB.")


def _disk() -> Check:
    gib = free_disk(home()) / 2**30
    ok = gib >= NEED_DISK_GIB or starter.ready()
    return Check("disk", ok, f"{gib:.1f} GiB free at {home()}", f"Free {NEED_DISK_GIB} GiB there, or set STUDIO_HOME.")


def _starter() -> Check:
    detail = f"ready at {starter.path()}" if starter.ready() else "not built yet; the first start builds it"
    return Check("starter model", True, detail)


def _compiler() -> Check:
    # As in jetmoe/c_library.py, whose import takes seconds.
    found = next(filter(None, map(shutil.which, (os.environ.get("CC", "gcc"), "cc", "clang"))), None)
    remedy = "Install gcc; without it, answers on a CPU are three times slower."
    return Check("C compiler", found is not None, found or "none", remedy)


def _bf16() -> Check:
    import torch

    from studio.backend.models.placement import default_dtype

    native = default_dtype("cpu") == torch.bfloat16
    return Check("bf16", True, "native" if native else "not native here: models run in fp32, at twice the memory")


def _exposure(exposure: Exposure) -> Check:
    try:
        exposure.require_safe()
    except StudioError as error:
        return Check("exposure", False, f"listens on {exposure.host}", str(error))
    login = f"with the logins of {exposure.auth}" if exposure.auth else "without a login"
    if exposure.local:
        return Check("exposure", True, f"{exposure.host}: this machine only, {login}")
    why = "a Space" if exposure.space else "behind a proxy" if exposure.proxy else "public"
    return Check("exposure", True, f"{exposure.host}: {why}, {login}")


def _secrets(exposure: Exposure) -> Check:
    """List secrets by name only. If others can reach the page, an attacker could read them, so there must be none."""
    names = sorted(name for name, value in os.environ.items() if value and SECRET.search(name.upper()))
    remedy = "Start the page without the ones that it doesn't need: `env -u NAME python app.py`."
    return Check("secrets", exposure.local or not names, f"in the environment: {', '.join(names) or 'none'}", remedy)


def _opened() -> Check:
    names = [name for name in OPENING if os.environ.get(name)]
    remedy = f"Unset {', '.join(names)}: they make Gradio expose files, code or the page to others."
    return Check("gradio's variables", not names, ", ".join(names) or "none that expose anything", remedy)


def _page() -> Check:
    try:
        facts = run_json(["-m", "studio.ui.page.page_facts"])
    except StudioError as error:
        return Check("page", False, str(error), "Run `python app.py` and read its output.")
    problems = [f"no {name}" for name in facts["missing_headers"]] + [f"{name} is on" for name in facts["open"]]
    problems += ["requests from other websites are answered"] * facts["answers_others"]
    fine = "headers are set; monitoring and run history are off"
    return Check("page", not problems, ", ".join(problems) or fine, "Undo the changes in studio/ui/page/layout.py.")


def _answers(model: str) -> Check:
    command = ["-m", "studio", "chat", "--model", model, "--prompt", "Say hello.", "--max-new-tokens", "10", "--json"]
    try:
        answer = run_json(command)
    except StudioError as error:
        return Check("answering", False, model, str(error))
    return Check("answering", True, f"{len(answer['token_ids'])} tokens, {answer['decode_tok_s']} per second")


def _trains(model: str) -> Check:
    """Run the trial that every run starts with: three steps that change and save nothing."""
    settings = [f"model={model}", "data=identity", "max_length=128"]
    try:
        run_json(["-m", "studio", "train", "starter/lora_experts", *settings, "--dry-run", "--json"])
    except StudioError as error:
        return Check("training", False, model, str(error))
    return Check("training", True, "three steps of a LoRA on all experts")
