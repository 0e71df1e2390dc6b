"""Models of the Hugging Face Hub: check a repository before its weights are downloaded, then download it.

    found = look(parse("allenai/OLMoE-1B-7B-0924"))          # raises StudioError if the studio can't load it
    download(found.reference, progress, found.missing_bytes)

`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HOME` apply as everywhere in `huggingface_hub`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx2  # the client of huggingface_hub, whose connection errors pass through it
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, errors, hf_hub_download, snapshot_download

from studio.backend.models import transfer
from studio.backend.system.files import read_json, require_space
from studio.backend.system.home import home, local
from studio.backend.system.progress import Progress
from studio.errors import StudioError

NAME = r"\w(?:[\w.-]{0,94}\w)?"
PATTERN = re.compile(rf"(?P<repo>{NAME}/{NAME})(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
SAFE_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"]  # fmt: skip
UNSAFE_FILES = ["*.bin", "*.pt", "*.pth", "*.py", "*.pkl"]
INDEX = "model.safetensors.index.json"
FAMILIES = {"jetmoe": "JetMoE", "olmoe": "OLMoE"}
"""Model types and names; same as `jetmoe.families.FAMILIES`, whose import would load torch, which is slow."""
TIMEOUT_S = 20
CONFIG_BYTES = 1_000_000
# Files at a time. A download that fails loses the files that it has begun; the complete ones are kept.
WORKERS = 2


class Reference(NamedTuple):
    repo: str
    revision: str | None = None
    """A branch, a tag or a commit; None is the default branch."""

    @property
    def id(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class Repository:
    """A repository whose weights the studio can load."""

    reference: Reference
    config: dict[str, Any]
    sizes: dict[str, int]
    """Bytes of the files to download, by name."""
    licence: str
    missing_bytes: int
    """Bytes of the files that are not on the disk yet."""

    @property
    def weight_bytes(self) -> int:
        return sum(size for name, size in self.sizes.items() if name.endswith(".safetensors"))

    @property
    def has_chat_template(self) -> bool | None:
        """None if it may be in tokenizer_config.json, which is not read."""
        return True if any(name.startswith("chat_template") for name in self.sizes) else None


class Unreachable(StudioError):
    """The Hub can't be reached, so nothing is known about a repository."""


def is_reference(text: object) -> bool:
    """Return whether the text has the form owner/name or owner/name@revision."""
    is_plain = isinstance(text, str) and len(text) <= 200 and ".." not in text and "--" not in text.partition("@")[0]
    return is_plain and PATTERN.fullmatch(str(text)) is not None


def parse(text: str) -> Reference:
    """Return the parts of "owner/name" or "owner/name@revision"; raise StudioError if it has another form."""
    if not is_reference(text := text.strip().removeprefix("https://huggingface.co/").rstrip("/")):
        raise StudioError(
            f"{text[:100]!r} names no model of the Hub. Write owner/name, or owner/name@revision, for example "
            "allenai/OLMoE-1B-7B-0924."
        )
    found = PATTERN.fullmatch(text)
    assert found is not None
    return Reference(found["repo"], found["revision"])


def look(reference: Reference, token: bool | None = None) -> Repository:
    """Return what the Hub says about a model, after checking its files and its configuration.

    The answer is cached for a minute.

    Args:
        token: False to see public models only; None uses the token of this machine, if there is one.

    Raises:
        Unreachable: the network is down, or `HF_HUB_OFFLINE` is set.
        StudioError: there is no such model or revision, it is gated, or the studio can't load it.
    """
    commit, sizes, licence, config = _ask(reference, token, int(time.monotonic() // 60))
    folder = _folder(reference.repo) / "snapshots" / commit
    missing = sum(size for name, size in sizes.items() if not (folder / name).is_file())
    return Repository(reference, config, sizes, licence, missing)


def find(reference: Reference) -> Path | None:
    """Return the folder of a model that was downloaded completely, or None. Needs no network."""
    try:
        folder = _snapshot(reference, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        return None
    return folder if is_whole(folder) else None


def downloaded() -> Iterator[tuple[Reference, Path]]:
    """Yield the JetMoE and OLMoE models in the Hub's cache, whatever program downloaded them."""
    for ref in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/refs/**/*")):
        if not ref.is_file():
            continue
        cache = next(parent for parent in ref.parents if parent.parent == Path(constants.HF_HUB_CACHE))
        revision = ref.relative_to(cache / "refs").as_posix()
        folder = cache / "snapshots" / ref.read_text(errors="replace").strip()
        repo = cache.name.removeprefix("models--").replace("--", "/", 1)
        reference = Reference(repo, None if revision == constants.DEFAULT_REVISION else revision)
        if is_reference(reference.id) and _is_ours(folder) and any(folder.glob("*.safetensors")):
            yield reference, folder


def download(reference: Reference, progress: Progress, need_bytes: int, token: bool | None = None) -> Path:
    """Return the folder of a model after downloading what is missing of it.

    A cut of a few seconds is bridged by `huggingface_hub`. After a failure, the complete files are kept. A second
    download of the same model waits for the first.

    Args:
        progress: is called in other threads, too; an exception that it raises ends the download.
        need_bytes: bytes to download.

    Raises:
        StudioError: the disk is too small, or the download fails; the message has the reason and a remedy.
    """
    with _alone(reference, progress):
        Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        require_space(Path(constants.HF_HUB_CACHE), need_bytes, "HF_HOME")
        progress(0.0, f"{transfer.text(reference.repo, 0, need_bytes, 0)} …")
        with _explained(reference):
            folder = _snapshot(
                reference, tqdm_class=transfer.progress_bar(reference.repo, need_bytes, progress), token=token
            )
    if not is_whole(folder):
        raise StudioError(f"{reference.id} lacks files that its index names. Pick another model or revision.")
    progress(1.0, f"{reference.id} is downloaded")
    return folder


def fetch(reference: Reference, filename: str, folder: Path) -> Path:
    """Download one file of a public repository into a folder.

    Raises:
        StudioError: the download fails; the message has the reason and a remedy.
    """
    with _explained(reference):
        return Path(
            hf_hub_download(reference.repo, filename, revision=reference.revision, local_dir=folder, token=False)
        )


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds a configuration and all weight files."""
    if not (folder / "config.json").is_file():
        return False
    if not (folder / INDEX).is_file():
        return (folder / "model.safetensors").is_file()
    try:
        files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        return all((folder / file).is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a damaged index
        return False


def check_config(config: dict[str, Any], name: str) -> None:
    """Raise StudioError if a model with this config.json is not JetMoE or OLMoE in 16, 32 or 4 bits."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        own_code = " with code of its own, which the studio never runs" if config.get("auto_map") else ""
        raise StudioError(
            f"{name} is a {kind[:40]!r} model{own_code}. Pick a JetMoE or OLMoE model; `python -m studio upcycle` "
            "converts Llama-architecture models to JetMoE."
        )
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method", "bitsandbytes") if isinstance(quantization, dict) else "unknown"
    if quantization and (method != "bitsandbytes" or not quantization.get("load_in_4bit")):
        raise StudioError(
            f"{name} is quantized in a way that the studio can't load ({str(method)[:40]}). Pick the 16-bit model: the "
            "studio quantizes it to 4 bits itself."
        )


@lru_cache(maxsize=64)
def _ask(reference: Reference, token: bool | None, minute: int) -> tuple[str, dict[str, int], str, dict[str, Any]]:
    """Return the commit, the sizes of the files to download, the licence and the configuration."""
    with _explained(reference):
        info = HfApi().model_info(
            reference.repo, revision=reference.revision, files_metadata=True, timeout=TIMEOUT_S, token=token
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    _check_files(sizes, reference.id)
    # Not into the cache, where a model that is refused would stay.
    with _explained(reference), TemporaryDirectory() as folder:
        file = hf_hub_download(reference.repo, "config.json", revision=info.sha, local_dir=folder, token=token)
        config = _read_config(Path(file), reference.id)
    check_config(config, reference.id)
    licence = str(getattr(info.card_data, "license", None) or "unknown")
    return str(info.sha), {name: size for name, size in sizes.items() if _is_safe(name)}, licence, config


def _check_files(sizes: dict[str, int], name: str) -> None:
    if "config.json" not in sizes:
        raise StudioError(f"{name} has no config.json, so it is not a model of transformers. Pick another model.")
    if sizes["config.json"] > CONFIG_BYTES:
        raise StudioError(f"The config.json of {name} is larger than 1 MB. Pick another model.")
    if not any(file.startswith("tokenizer") for file in sizes):
        raise StudioError(f"{name} has no tokenizer. Pick a model with a tokenizer.json.")
    if any(file.endswith(".safetensors") for file in sizes):
        return
    pickles = [file for file in sizes if file.endswith((".bin", ".pt", ".pth", ".pkl"))]
    if pickles:
        raise StudioError(
            f"{name} holds its weights only as pickle files ({pickles[0][:60]}), which can run code when opened. Pick "
            "a revision or another model with safetensors."
        )
    raise StudioError(f"{name} has no safetensors weights. Pick another model.")


def _read_config(file: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StudioError(f"The config.json of {name} is damaged. Pick another model or revision.") from error
    return config if isinstance(config, dict) else {}


@contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    """Turn the errors of huggingface_hub into StudioErrors with a remedy."""
    name = reference.id
    try:
        yield
    except errors.GatedRepoError as error:
        raise StudioError(
            f"{name} is a gated model. Accept its terms on the Hub, then run `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StudioError(f"{reference.repo} has no revision {reference.revision!r}. Check the name.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise StudioError(
            f"The Hub has no model {name}. Check the name; a private model needs `hf auth login` or HF_TOKEN."
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(name, error) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, httpx2.HTTPError) as error:
        offline = constants.is_offline_mode()
        remedy = "Unset HF_HUB_OFFLINE" if offline else "Check the network and try again"
        raise Unreachable(f"The Hub can't be reached for {name}. {remedy}; complete files are kept.") from error
    except OSError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise StudioError(
            f"The download of {name} failed: {reason}. Check the network and the free disk "
            "space and try again; complete files are kept."
        ) from error


def _refused(name: str, error: errors.HfHubHTTPError) -> StudioError:
    status = error.response.status_code
    if status == 429:
        wait = str(error.response.headers.get("Retry-After", ""))
        when = f"in {wait} seconds" if wait.isdigit() else "in a few minutes"
        return StudioError(f"The Hub has received too many requests for {name}. Try again {when}, or set HF_TOKEN.")
    if status in (401, 403):
        return StudioError(f"The Hub refuses access to {name}. Check HF_TOKEN, or run `hf auth login`.")
    return StudioError(f"The Hub answers with error {status} for {name}. Try again later; complete files are kept.")


@contextmanager
def _alone(reference: Reference, progress: Progress) -> Iterator[None]:
    """Wait until no other process or thread downloads the model."""
    folder = local(home()) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{reference.repo.replace('/', '--')}.lock", thread_local=False)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            progress(0.0, f"Waiting for another download of {reference.id} …")
    try:
        yield
    finally:
        lock.release()


def _snapshot(reference: Reference, **arguments: Any) -> Path:
    return Path(
        snapshot_download(
            reference.repo,
            revision=reference.revision,
            allow_patterns=SAFE_FILES,
            ignore_patterns=UNSAFE_FILES,
            max_workers=WORKERS,
            **arguments,
        )
    )


def _folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _is_ours(folder: Path) -> bool:
    return str((read_json(folder / "config.json") or {}).get("model_type")) in FAMILIES


def _is_safe(name: str) -> bool:
    matches = any(fnmatch(name, pattern) for pattern in SAFE_FILES)
    return matches and not any(fnmatch(name, pattern) for pattern in UNSAFE_FILES)
