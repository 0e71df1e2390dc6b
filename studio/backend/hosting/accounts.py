"""User accounts: a file of `name:hash` lines, written by `python -m studio user add NAME`.

    accounts = Accounts(Path("users.txt"))
    accounts.add("ada", "correct horse battery")
    accounts.check("ada", "correct horse battery")   # True

Passwords are hashed with scrypt; each hash includes its parameters and salt: `scrypt$32768$8$3$<salt>$<hash>`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from filelock import FileLock

from studio.backend.system.files import atomic_write
from studio.errors import StudioError

NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
SHORTEST, LONGEST = 10, 1024
"""Minimum and maximum characters of a password."""
# OWASP's recommendation for 32 MiB of memory; takes a quarter of a second on a current core.
COST, BLOCK, LANES = 2**15, 8, 3
DEAREST = 2**20
"""The highest cost that a line may set, which takes 1 GiB of memory."""


class Accounts:
    """The accounts in a file, which is read again whenever it changes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._version: tuple[int, ...] = ()
        self._hashes: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return the names of all users.

        Raises:
            StudioError: the file can't be read, other users may read it, or a line is malformed.
        """
        self._refresh()
        return list(self._hashes)

    def stamp(self, name: str) -> str | None:
        """Return a value that changes with the user's password, or None for an unknown name.

        Raises:
            StudioError: as for `names`.
        """
        self._refresh()
        return self._hashes.get(name)

    def check(self, name: str, password: str) -> bool:
        """Return whether the password is right, in the same time for known and unknown names.

        Raises:
            StudioError: as for `names`.
        """
        self._refresh()
        stored = self._hashes.get(name)
        if len(password) > LONGEST:
            return False
        return matches(password, stored or _NOBODY) and stored is not None

    def add(self, name: str, password: str) -> bool:
        """Add a user, or change the password of an existing one; return whether the name is new.

        Raises:
            StudioError: the name or the password is invalid, or the file can't be written.
        """
        if not re.fullmatch(NAME, name):
            raise StudioError(f"{name[:80]!r} can't be a name: use up to 64 letters, digits, dots, dashes, @ and _.")
        if not SHORTEST <= len(password) <= LONGEST:
            raise StudioError(f"A password has {SHORTEST} to {LONGEST:,} characters; this one has {len(password):,}.")
        with self._changing() as hashes:
            new = name not in hashes
            hashes[name] = hashed(password)
        return new

    def remove(self, name: str) -> None:
        """Remove a user.

        Raises:
            StudioError: there is no such name, or the file can't be written.
        """
        with self._changing() as hashes:
            if name not in hashes:
                raise StudioError(f"{self.file} has no user {name[:80]!r}. Its users: {', '.join(hashes) or 'none'}.")
            del hashes[name]

    def _changing(self) -> _Change:
        return _Change(self)

    def _refresh(self) -> None:
        try:
            found = self.file.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode)
            if version == self._version:
                return
            if os.name == "posix" and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StudioError(
                    f"Other users can read {self.file}, which holds password hashes: run `chmod 600 {self.file}`."
                )
            self._hashes = _parsed(self.file.read_text(encoding="utf-8"), self.file)
        except FileNotFoundError as error:
            raise StudioError(
                f"There is no {self.file}. Create it: `python -m studio user add NAME --file {self.file}`."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise StudioError(
                f"{self.file} can't be read ({error}). Check its permissions, and that it is a text file."
            ) from error
        self._version = version


class _Change:
    """A context manager that locks the file, returns the hashes and writes them atomically on exit."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.lock = FileLock(f"{accounts.file}.lock", mode=0o600)

    def __enter__(self) -> dict[str, str]:
        try:
            self.accounts.file.parent.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except OSError as error:
            raise _unwritable(self.accounts.file, error) from error
        try:
            if self.accounts.file.exists():
                self.accounts._refresh()
            self.hashes = dict(self.accounts._hashes)
        except BaseException:
            self.lock.release()
            raise
        return self.hashes

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._write()
        except OSError as error:
            raise _unwritable(self.accounts.file, error) from error
        finally:
            self.lock.release()

    def _write(self) -> None:
        lines = (f"{name}:{line}\n" for name, line in self.hashes.items())
        atomic_write(self.accounts.file, "".join(lines), mode=0o600)


def hashed(password: str) -> str:
    salt = secrets.token_bytes(16)
    return _line(COST, BLOCK, LANES, salt, _scrypt(password, salt, COST, BLOCK, LANES))


def matches(password: str, line: str) -> bool:
    _, cost, block, lanes, salt, expected = line.split("$")
    found = _scrypt(password, _bytes(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(found, _bytes(expected))


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    memory = 128 * block * (cost + lanes + 2)
    return hashlib.scrypt(password.encode(), salt=salt, n=cost, r=block, p=lanes, maxmem=memory, dklen=32)


def _line(cost: int, block: int, lanes: int, salt: bytes, digest: bytes) -> str:
    texts = [base64.b64encode(part).decode() for part in (salt, digest)]
    return "$".join(["scrypt", str(cost), str(block), str(lanes), *texts])


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _parsed(text: str, file: Path) -> dict[str, str]:
    hashes = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        if not re.fullmatch(NAME, name) or not _usable(rest):
            raise StudioError(f"Line {number} of {file} is not `name:hash`: remove it and add the user again.")
        hashes[name] = rest
    return hashes


def _usable(line: str) -> bool:
    found = re.fullmatch(r"scrypt\$(\d{1,8})\$(\d{1,2})\$(\d{1,2})\$([\w+/=]{16,88})\$([\w+/=]{44})", line)
    if not found:
        return False
    cost, block, lanes = (int(part) for part in found.groups()[:3])
    try:
        salt, digest = _bytes(found[4]), _bytes(found[5])
    except binascii.Error:
        return False
    hard = cost >= 2**14 and cost & (cost - 1) == 0 and block >= 1 and lanes >= 1
    return hard and cost * block <= DEAREST * BLOCK and lanes <= 16 and len(salt) >= 8 and len(digest) == 32


def _unwritable(file: Path, error: OSError) -> StudioError:
    return StudioError(f"{file} can't be written ({error.strerror}). Choose another file with --file.")


# Compared for unknown names, so that they take equally long. No known password has this hash.
_NOBODY = _line(COST, BLOCK, LANES, bytes(16), bytes(32))
