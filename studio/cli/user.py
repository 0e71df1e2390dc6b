"""`python -m studio user ...`: manage the accounts of a page that is started with `--auth FILE`.

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

user_app = typer.Typer(no_args_is_help=True, help="Manage the accounts of a page that is started with --auth FILE.")

Name = Annotated[str, typer.Argument(help="User name: letters, digits, dots, dashes, @ and _.")]
File = Annotated[Path | None, typer.Option(help="File for `app.py --auth`; the default is users.txt in the home.")]


@user_app.command()
def add(name: Name, file: File = None) -> None:
    """Add a user or change their password, which is read from a prompt or from stdin."""
    from studio.backend.hosting.accounts import Accounts

    accounts = Accounts(file or _default())
    new = accounts.add(name, _password())
    print(f"{name} {'was added to' if new else 'has a new password in'} {accounts.file}")


@user_app.command()
def remove(name: Name, file: File = None) -> None:
    """Remove a user; a running page asks them to log in at once."""
    from studio.backend.hosting.accounts import Accounts

    accounts = Accounts(file or _default())
    accounts.remove(name)
    print(f"{name} was removed from {accounts.file}")


def _default() -> Path:
    from studio.backend.system.home import home

    return home() / "users.txt"


def _password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Repeat the password: ") != password:
        raise StudioError("The passwords differ, and nothing was changed. Start again.")
    return password
