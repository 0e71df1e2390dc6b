"""The README, the pages in docs/ and CONTRIBUTING.md: the metadata of a Space, links, and the names in the text."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from studio.backend.recipe import DEFAULTS
from studio.backend.recipe_file import recipes
from studio.cli.main import app
from studio.ui.page.glossary import anchor
from studio.ui.server import sign_in
from tests import docs_cli
from tests.test_layout import ORDER

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# https://huggingface.co/docs/hub/spaces-config-reference
KEYS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "base_path",
    "fullWidth", "header", "short_description", "models", "datasets", "tags", "thumbnail", "pinned", "license",
    "suggested_hardware", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "hf_oauth_authorized_org",
    "disable_embedding", "startup_duration_timeout", "custom_headers", "preload_from_hub",
}  # fmt: skip

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def head() -> str:
    return read(ROOT / "README.md").split("---\n")[1]


@pytest.fixture(scope="module")
def front(head) -> dict:
    return yaml.safe_load(head)


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCED.sub("", read(page))


def code(page: Path) -> Iterator[str]:
    """Yield the lines of a page's code blocks, continued lines joined, and its code spans."""
    for block in FENCED.findall(read(page)):
        yield from block.replace("\\\n", " ").splitlines()
    for span in re.findall("`([^`]+)`", prose(page)):
        yield " ".join(span.split())


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words after `-m studio` of every command on a page."""
    for line in code(page):
        if found := re.search(r"-m studio( .*)?$", line):
            yield shlex.split(found[1] or "", comments=True)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return set(map(anchor, titles))


@cache
def sources(folder: str, *suffixes: str) -> str:
    files = [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in suffixes]
    return "\n".join(map(read, files))


def test_space_metadata_has_only_known_keys(front):
    assert set(front) <= KEYS
    assert (front["sdk"], front["app_file"], front["suggested_hardware"]) == ("gradio", "app.py", "cpu-basic")
    assert (ROOT / front["app_file"]).is_file()


def test_space_versions_are_the_tested_ones(front, head):
    pin = re.search(r"^gradio==(\S+)$", read(ROOT / "requirements.txt"), re.MULTILINE)
    assert front["sdk_version"] == pin[1]
    assert re.search(r'^python_version: "3\.1[12]"$', head, re.MULTILINE), "unquoted, 3.10 would be 3.1"


def test_space_metadata_has_description_models_and_timeout(front):
    assert len(front["short_description"]) <= 60
    assert {"jetmoe/jetmoe-8b", "jetmoe/jetmoe-8b-chat"} <= set(front["models"])
    # The starter is downloaded and built on the first start.
    assert re.fullmatch(r"\d+[mh]", front["startup_duration_timeout"])


def test_sign_in_is_declared_with_the_smallest_scope(front):
    assert "gr.LoginButton(" in sources("studio/ui", ".py") and front["hf_oauth"] is True
    assert front["hf_oauth_scopes"] == [sign_in.SCOPE]
    for package in ("authlib", "itsdangerous"):
        assert re.search(f"^{package}==", read(ROOT / "requirements.txt"), re.MULTILINE), package


def test_readme_is_short():
    assert len(read(ROOT / "README.md").splitlines()) <= 200


@each_page
def test_lines_are_short(page):
    assert not [line for line in read(page).splitlines() if len(line) > 120 and not line.startswith("|")]


@each_page
def test_links_resolve(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_linked_from_the_readme():
    assert {page.name for page in PAGES} <= {"README.md", *re.findall(r"\((?:docs/)?(\w+\.md)\)", read(PAGES[0]))}


@each_page
def test_commands_and_options_exist(page):
    tree = get_command(app)
    for words in commands(page):
        command, rest = tree, list(words)
        while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        assert not isinstance(command, TyperGroup) or not rest, words
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= known, words


@each_page
def test_recipes_and_settings_exist(page):
    for words in commands(page):
        if "train" in words and "bench" not in words:
            assert {word.partition("=")[0] for word in words if "=" in word} <= set(DEFAULTS), words
    named = {name for line in code(page) for name in re.findall(r"(?<![\w/-])(?:starter|jetmoe-8b)/\w+", line)}
    assert named <= set(recipes())


@each_page
def test_modules_exist(page):
    named = {name for line in code(page) for name in re.findall(r"-m ((?:studio|tests)\.[\w.]+)", line)}
    assert not [name for name in named if importlib.util.find_spec(name) is None]


@each_page
def test_paths_exist(page):
    named = {
        path.rstrip(".")
        for line in code(page)
        for path in re.findall(r"(?<![\w/>.-])(?:jetmoe|studio|tests|recipes|docs)/[\w./-]+", line)
    }
    placeholders = {path for path in named if "NAME" in path or path.startswith("jetmoe/jetmoe-8b")}
    assert not [path for path in named - placeholders if not (ROOT / path).exists()]


def test_folders_of_the_readme_exist():
    folders: list[Path] = []
    for line in next(block for block in FENCED.findall(read(PAGES[0])) if block.startswith("app.py")).splitlines():
        names = re.findall(r"[\w.]+(?:/|\.py)(?=\s)", re.split(r"\s{3,}", line.strip())[0] + " ")
        depth = (len(line) - len(line.lstrip())) // 2
        if not names or depth > len(folders):
            continue
        folders = [*folders[:depth], Path(names[0])]
        for name in names:
            assert ROOT.joinpath(*folders[:depth], name).exists(), line


@each_page
def test_make_targets_and_flags_exist(page):
    targets = re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)
    for line in code(page):
        assert set(re.findall(r"^make ([\w-]+)", line)) <= set(targets), line
        if found := re.search(r"python app\.py (.*)", line):
            assert all(f'"{flag}"' in read(ROOT / "app.py") for flag in re.findall(r"--[\w-]+", found[1])), line


@each_page
def test_variables_exist(page):
    code_of_studio = sources("studio", ".py")
    assert not [name for name in re.findall(r"STUDIO_[A-Z_]+", read(page)) if f'"{name}"' not in code_of_studio]


@each_page
def test_bold_words_are_labels_of_the_page(page):
    """Bold text names a tab, a button or another label, apart from the best figures in tables."""
    labels = {label for label in re.findall(r"\*\*([^*]+)\*\*", prose(page)) if not label[0].isdigit()}
    ui = sources("studio/ui", ".py", ".js", ".html")
    assert not [label for label in labels if not re.search(rf"""["'`>]{re.escape(" ".join(label.split()))}""", ui)]


def test_command_line_page_is_current():
    assert read(docs_cli.PAGE) == docs_cli.page(), "run `python -m tests.docs_cli`"


def test_architecture_has_the_tested_import_order():
    assert ORDER.strip() in read(ROOT / "docs" / "architecture.md")
