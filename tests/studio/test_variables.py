"""The table of environment variables in docs/hosting.md, against the names in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [*ROOT.glob("studio/**/*.py"), *ROOT.glob("jetmoe/**/*.py"), ROOT / "app.py"]
OWN = re.compile(r"(STUDIO|JETMOE|ACCELERATE|FSDP)_[A-Z_]+")
OF_LIBRARIES = {"HF_TOKEN"}
BY_CONSTANT = {"GRADIO_SERVER_NAME"}
"""Named by `exposure.HOST`, where `environ` is read."""


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield what is read from or written to `os.environ` by its name, and all strings that are names of our own."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Attribute(ast.Attribute(attr="environ")), [ast.Constant(str(name)), *_]):
                yield name
            case ast.Subscript(ast.Attribute(attr="environ"), ast.Constant(str(name))):
                yield name
            case ast.Compare(ast.Constant(str(name)), comparators=[ast.Attribute(attr="environ")]):
                yield name
            case ast.Constant(str(name)) if OWN.fullmatch(name):
                yield name


def test_the_table_of_variables_is_that_of_the_code():
    used = {name for file in FILES for name in names_in(ast.parse(file.read_text(encoding="utf-8")))}
    section = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8").partition("## Variables")[2]
    rows = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    assert len(documented) == len(set(documented)), "a variable has two rows"
    assert "STUDIO_HOME" in used and set(documented) - OF_LIBRARIES == used | BY_CONSTANT
