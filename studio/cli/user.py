"""`python -m studio user ...`: who may log in to a page that is started with `--auth FILE`.

python -m studio user add ada                       # asks for a password twice
echo "$PASSWORD" | python -m studio user add ada --file users.txt
python -m studio user remove ada
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from studio.errors import StudioError

user_app = typer.Typer(no_args_is_help=True, help="Who may log in to a page that is started with --auth FILE.")

Name = Annotated[str, typer.Argument(help="Letters, digits, dots, dashes, @ and _.")]
File = Annotated[Path | None, typer.Option(help="The file for `app.py --auth`; users.txt in the studio's folder.")]


@user_app.command()
def add(name: Name, file: File = None) -> None:
    """Adds somebody, or changes their password, which is asked for twice, or read from stdin when it's no terminal."""
    from studio.backend.hosting.accounts import Accounts

    accounts = Accounts(file or _default())
    new = accounts.add(name, _password())
    print(f"{name} {'is added to' if new else 'has a new password in'} {accounts.file}")


@user_app.command()
def remove(name: Name, file: File = None) -> None:
    """Removes somebody; a page that runs asks them for a login at once."""
    from studio.backend.hosting.accounts import Accounts

    accounts = Accounts(file or _default())
    accounts.remove(name)
    print(f"{name} is removed from {accounts.file}")


def _default() -> Path:
    from studio.backend.system.home import home

    return home() / "users.txt"


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("The same again: ") != password:
        raise StudioError("The two are not the same. Start again; nothing was changed.")
    return password
