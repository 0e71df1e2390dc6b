"""The shape of the repository: imports point one way, and files are named for what they hold."""

import ast
import os
import pkgutil
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest

import jetmoe

ROOT = Path(__file__).parents[1]
# Each line may import from the lines above it, never from its own neighbours; lazy imports count.
ORDER = """
errors registry
jetmoe
analysis
backend.system backend.recipe_conflicts backend.recipe_file backend.settings
backend.recipe
backend.hosting
backend.models backend.runs
backend.adapters backend.data
backend.chat
backend.classification
backend.training
backend.export
backend.bench backend.doctor
cli ui.server
ui.common
ui.routing
ui.chat ui.classify ui.finetune
ui.page
"""
RANK = {part: rank for rank, line in enumerate(ORDER.strip().splitlines()) for part in line.split()}
# What stands beside each other in the order, and must not meet all the same.
APART = {"jetmoe": ("errors", "registry"), "cli": ("ui",), "ui": ("cli",)}
# Peers of the benchmarks, and what comes with a CUDA build of torch.
OPTIONAL = {"llama_cpp", "openvino", "openvino_genai", "triton"}
UNNAMED = {"utils.py", "helpers.py", "manager.py", "misc.py"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
UI = ROOT / "studio" / "ui"
LONGEST_SCRIPT = 250


@cache
def modules() -> dict[str, Path]:
    files = [path for folder in ("jetmoe", "studio") for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    return dict(zip(names, files, strict=True))


@cache
def imports(path: Path) -> frozenset[str]:
    """Our modules that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & modules().keys()) or {node.module}
    return frozenset(names)


def part(module: str) -> str:
    """`studio.backend.runs.store` -> `backend.runs`."""
    names = module.removeprefix("studio.").split(".")
    return ".".join(names[:2] if names[0] in ("backend", "ui") else names[:1])


@pytest.mark.parametrize("module", [name for name in modules() if part(name) in RANK])
def test_imports_point_one_way(module):
    here = part(module)
    for name in imports(modules()[module]) & modules().keys():
        there = part(name)
        if there not in RANK or there == here:
            continue
        assert RANK[there] < RANK[here], f"{module} imports {name}"
        assert there.split(".")[0] not in APART.get(here.split(".")[0], ()), f"{module} imports {name}"


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("jetmoe", "gradio"), ("studio/backend", "gradio"), ("studio", "app")]
)
def test_libraries_stay_in_their_part(folder, forbidden):
    found = {
        path for path in (ROOT / folder).rglob("*.py") if forbidden in {name.split(".")[0] for name in imports(path)}
    }
    assert not found


def test_every_module_has_a_place_in_the_order():
    inner = {"studio", "studio.__main__", "studio.backend", "studio.ui"}
    assert {part(name) for name in modules() if name not in inner} == RANK.keys()


def test_no_module_imports_itself_in_a_circle():
    assert not circle({name: imports(path) & modules().keys() - {name} for name, path in modules().items()})


def circle(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left of a graph without its leaves, again and again."""
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    return graph


def test_requirements_name_every_library_that_is_imported():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = {re.match(r"[\w-]*", line)[0].lower().replace("_", "-") for line in lines}
    used = {name.partition(".")[0] for path in modules().values() for name in imports(path)}
    used -= {"jetmoe", "studio", *OPTIONAL, *sys.stdlib_module_names}
    names = {name: {one.lower().replace("_", "-") for one in packages_distributions()[name]} for name in used}
    assert not [name for name, packages in names.items() if not packages & required]


def test_no_file_is_named_for_nothing():
    assert not [path for path in ROOT.rglob("*.py") if path.name in UNNAMED and ".venv" not in path.parts]


@pytest.mark.parametrize("module", modules())
def test_files_and_functions_stay_short(module):
    """Signatures and docstrings do not count: those of commands and of a model's forward have an argument a line."""
    text = modules()[module].read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < LONGEST_FUNCTION, node.name


@cache
def scripts() -> dict[str, set[str]]:
    """The page's JavaScript modules and what each imports, as paths below studio/ui."""
    found = {}
    for path in sorted(UI.rglob("*.js")):
        names = re.findall(r'\bfrom "(.+)";$', path.read_text(), re.MULTILINE)
        found[str(path.relative_to(UI))] = {os.path.normpath(path.parent.relative_to(UI) / name) for name in names}
    return found


@pytest.mark.parametrize("script", scripts())
def test_scripts_import_their_own_folder_and_those_above_it_in_the_order(script):
    here = f"ui.{script.split('/')[0]}"
    for name in scripts()[script]:
        there = f"ui.{name.split('/')[0]}"
        assert there == here or RANK[there] < RANK[here], f"{script} imports {name}"


@pytest.mark.parametrize("script", scripts())
def test_scripts_stay_short(script):
    """eslint checks their functions."""
    assert (UI / script).read_text().count("\n") <= LONGEST_SCRIPT


def test_no_script_imports_itself_in_a_circle():
    assert not circle(scripts())


def test_nothing_unsafe_is_called():
    """Checkpoints are safetensors, configurations are data, child processes get lists."""
    calls = ("torch.load(", "pickle.load", "trust_remote_code=True", "shell=True", "yaml.load(")
    sources = [*modules().values(), ROOT / "app.py"]
    found = {f"{path.name}: {call}" for path in sources for call in calls if call in path.read_text()}
    assert not found


def test_no_name_of_the_package_hides_a_module():
    """`jetmoe.config` is a module, whatever `jetmoe/__init__.py` calls its variables."""
    names = {info.name for info in pkgutil.iter_modules(jetmoe.__path__)} & vars(jetmoe).keys()
    assert "config" in names and all(isinstance(getattr(jetmoe, name), ModuleType) for name in names)
