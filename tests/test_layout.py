"""The shape of the repository: imports point one way, and files are named for what they hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each part may not import; app.py stands above all of them.
FORBIDDEN = {
    "jetmoe": ("studio", "gradio", "app"),
    "studio/backend": ("gradio", "studio.ui", "studio.cli.main", "app"),
    "studio/analysis": ("gradio", "studio.ui", "studio.backend", "studio.cli.main", "app"),
    "studio/ui": ("app", "studio.cli.main"),
}
UNNAMED = {"utils.py", "helpers.py", "manager.py", "misc.py"}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_one_way(part):
    files = list((ROOT / part).rglob("*.py"))
    assert files
    upward = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(within(name, package) for package in FORBIDDEN[part])
    }
    assert not upward


def test_only_the_app_imports_the_page():
    others = [path for folder in ("jetmoe", "studio") for path in (ROOT / folder).rglob("*.py")]
    outside = [path for path in others if not path.is_relative_to(ROOT / "studio" / "ui")]
    assert not [path for path in outside if any(within(name, "studio.ui") for name in imports(path))]


def test_no_file_is_named_for_nothing():
    assert not [path for path in ROOT.rglob("*.py") if path.name in UNNAMED and ".venv" not in path.parts]


def test_nothing_unsafe_is_called():
    """Checkpoints are safetensors, configurations are data, child processes get lists."""
    calls = ("torch.load(", "pickle.load", "trust_remote_code=True", "shell=True", "yaml.load(")
    sources = [path for folder in ("jetmoe", "studio") for path in (ROOT / folder).rglob("*.py")] + [ROOT / "app.py"]
    found = {f"{path.name}: {call}" for path in sources for call in calls if call in path.read_text()}
    assert not found
