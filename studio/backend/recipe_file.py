"""Find recipe files, and read YAML that sets each setting once."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from studio.errors import StudioError

FOLDER = Path(__file__).parents[2] / "recipes"
# libyaml's parser takes a tenth of the time.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Enough for the largest recipe that `to_yaml` writes; larger YAML takes seconds to parse.
LARGEST_FILE = 256 * 1024


def recipes() -> dict[str, Path]:
    """Return the bundled recipes by name, without the launch configurations in accelerate/."""
    files = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
    return {name: path for name, path in files.items() if not name.startswith("accelerate/")}


def find_recipe(path: str | Path) -> Path:
    """Return the file at that path, else the bundled recipe of that name, which doesn't depend on the current folder.

    Raises:
        StudioError: there is neither.
    """
    with suppress(OSError):  # too long for a path
        if Path(path).suffix in (".yaml", ".yml") and Path(path).is_file():
            return Path(path)
    name = str(path).removeprefix("recipes/").removesuffix(".yaml")
    if name in recipes():
        return recipes()[name]
    raise StudioError(f"There is no recipe {str(path)[:200]!r}. Name a .yaml file or one of {', '.join(recipes())}.")


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise StudioError(f"{path} can't be read ({error.strerror}). Check its permissions.") from error
    if len(text) > LARGEST_FILE:
        raise StudioError(f"{path} is not a recipe: it is larger than {LARGEST_FILE // 1024} KiB.")
    try:
        settings = parse_yaml(text.decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:
        raise StudioError(f"{path} can't be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise StudioError(f"{path} is not a recipe: write one `setting: value` per line.")
    return settings


def parse_yaml(text: str) -> Any:
    """Parse YAML into plain data.

    Raises:
        yaml.YAMLError, ValueError: invalid YAML, or features that only attacks need (anchors, deep nesting).
    """
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("anchors and aliases (& and *) are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 3:
            raise ValueError("it is nested too deeply")
    _refuse_twice(yaml.compose(text, Loader=LOADER))
    loader = LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _refuse_twice(document: yaml.Node | None) -> None:
    """Raise ValueError for duplicate keys, because YAML silently keeps the last one."""
    if isinstance(document, yaml.MappingNode):
        names = Counter(key.value for key, _ in document.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} is set twice")
