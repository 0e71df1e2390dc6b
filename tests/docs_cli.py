"""Write docs/cli.md from the commands that `studio.cli.main` defines.

    python -m tests.docs_cli            # write the page
    python -m tests.docs_cli --check    # exit with 1 if the page on disk differs

The text comes from the command tree and has a fixed width, so it does not depend on the terminal. Importing this
module does not import torch.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from studio.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 120
PROGRAM = "python -m studio"
TYPES = {"str": "TEXT", "int": "INTEGER", "float": "FLOAT", "Path": "PATH"}
INTRO = """\
# Command line

<!-- Written by `python -m tests.docs_cli`. Change the help texts in studio/cli, then run that command. -->

Run every command with the Python of `.venv`, for example `.venv/bin/python -m studio doctor`. The result goes to
stdout, progress and notices go to stderr. With `--json`, a command prints one JSON document.

Exit codes: 0 if the command succeeded; 2 if you can fix the problem, and the last line on stderr says how; 1 for a bug.
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    commands = list(walk(get_command(app), PROGRAM))
    contents = [f"- [`{path}`](#{anchor(path)}): {summary(command)}" for path, command in commands]
    sections = [section(path, command) for path, command in commands]
    return "\n".join([INTRO, *map(wrapped, contents), "", "\n\n".join(sections), ""])


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with the words that call it; groups themselves are left out."""
    if not isinstance(command, TyperGroup):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from walk(child, f"{path} {name}")


def section(path: str, command: Any) -> str:
    """Return the heading, usage, help text, arguments and options of one command."""
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    usage = " ".join([path, *map(argument_name, arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"## {short(path)}\n\n```\n{usage}\n```\n\n{wrapped(' '.join(command.help.split()), '')}"]
    for title, names in (
        ("Arguments", [entry(argument_name(each), each) for each in arguments]),
        ("Options", [entry(option_name(each), each) for each in options]),
    ):
        if names:
            parts.append(f"{title}:\n\n" + "\n".join(names))
    return "\n\n".join(parts)


def argument_name(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.required else f"[{name}]"
    return name if argument.nargs == 1 else f"{name}..."


def option_name(option: Any) -> str:
    names = ", ".join(option.opts)
    if option.is_flag:
        return " / ".join([names, *option.secondary_opts])
    kind = option.bare_type().removeprefix("list[").removesuffix("]")
    return f"{names} {option.metavar or TYPES.get(kind, kind.upper())}"


def entry(name: str, parameter: Any) -> str:
    """Return a list item: name, help text, and the default if there is one."""
    notes = [" ".join((parameter.help or "").split())]
    if parameter.param_type_name == "option" and parameter.required:
        notes.append("Required.")
    elif parameter.default not in (None, "") and parameter.default is not False:
        notes.append(f"Default: `{parameter.default}`.")
    text = " ".join(filter(None, notes))
    return wrapped(f"- `{name}`: {text}" if text else f"- `{name}`")


def wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def summary(command: Any) -> str:
    """Return the first sentence of a command's help text."""
    return f"{' '.join(command.help.split()).partition('. ')[0].removesuffix('.')}."


def short(path: str) -> str:
    return path.removeprefix(f"{PROGRAM} ")


def anchor(path: str) -> str:
    return short(path).replace(" ", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/cli.md from the command line's own help texts.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print("docs/cli.md differs from the command line's help texts: run `python -m tests.docs_cli`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
