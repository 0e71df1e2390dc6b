"""Push an exported folder to the Hugging Face Hub, as a private repository by default.

push(Path("pirate"), "me/pirate", stored_token())      # "https://huggingface.co/me/pirate"
card(Path("pirate"), "me/pirate")                      # the model card as pushed

The token is sent only to the hub; no file, log or message of the studio contains it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from jetmoe.adapters.files import CONFIG, WEIGHTS
from studio.backend.classification import tfidf
from studio.backend.export.base import PROOF
from studio.backend.export.model_card import PLACE
from studio.backend.system.progress import Progress
from studio.errors import StudioError

CARD = "README.md"
ADAPTER = {CARD, CONFIG, WEIGHTS}
MODEL = {CARD, PROOF, "config.json", "generation_config.json", "model.safetensors.index.json"}
TOKENIZER = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
}
# The hub accepts only its own models as base models.
LOCAL_BASE = re.compile(r"^base_model: [^/\n]+\nbase_model_relation: .*\n", re.MULTILINE)
NAME_LENGTH = 60
MODEL_WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors"
TOKENS = "https://huggingface.co/settings/tokens"
# Messages by the HTTP status of the hub's response.
ANSWERS = {
    401: "The hub refuses the token. Create one with write access at {tokens} and use that.",
    402: "The account of {repo} has no storage left on the hub. Free some there, or push to another account.",
    403: "The token may not write to {repo}. Use one that may (see {tokens}), or name one of your repositories.",
    404: "The hub has no {repo} that this token may write to. Check the name, and the token's rights at {tokens}.",
    409: "Somebody else is changing {repo} right now. Push again in a moment.",
    429: "The hub has had too many requests from you. Wait some minutes, then push again; uploaded files are kept.",
}


# For the token of a sign-in on a Space.
ANSWERS_SIGNED_IN = ANSWERS | {
    401: "The hub no longer accepts your sign-in. Sign out at the top of the page, sign in again, then push again.",
    403: "The studio may not write to {repo}: your sign-in lets it create repositories and write only to those. Push "
    "to a name that you have no repository with yet.",
}
ANSWERS_SIGNED_IN[404] = ANSWERS_SIGNED_IN[403]


def push(
    folder: Path,
    repo_id: str,
    token: str,
    private: bool = True,
    progress: Progress = lambda fraction, text: None,
    signed_in: bool = False,
) -> str:
    """Upload the files that `export` wrote in one commit, and return the URL of the repository.

    Other files in the folder are ignored.

    Args:
        repo_id: NAME/REPO; created if it does not exist.
        private: whether only you can see the repository. If true, an existing public repository is refused.
        signed_in: whether the token comes from a sign-in on a Space.

    Raises:
        StudioError: the folder has no export, the name or token is invalid, or the hub can't be reached or refuses.
    """
    names = files(folder)
    check_repo_id(repo_id)
    token = _checked(token)
    try:
        return _push(_api(token), folder, names, repo_id, private, progress)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        sentence = _sentence(error, repo_id, ANSWERS_SIGNED_IN if signed_in else ANSWERS)
    # Raised outside of the except block: the hub's response may contain the token, and would be in the traceback.
    raise StudioError(sentence.replace(token, "***"))


def account(token: str) -> str:
    """Return the name of the account that owns the token.

    Raises:
        StudioError: the token is invalid, or the hub can't be reached.
    """
    token = _checked(token)
    try:
        return _api(token).whoami()["name"]
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        sentence = _sentence(error, "your account", ANSWERS)
    raise StudioError(sentence.replace(token, "***"))


def files(folder: Path) -> list[str]:
    """Return the names of the files to push: those that `export` writes.

    Raises:
        StudioError: the folder has no export.
    """
    there = [file.name for file in folder.glob("*") if file.is_file() and not file.is_symlink()]
    weights = [name for name in there if re.fullmatch(MODEL_WEIGHTS, name)]
    if set(there) >= ADAPTER:
        # A classifier's config.json names its labels.
        return sorted(ADAPTER | ({*there} & {"config.json", *tfidf.FILES}))
    if {*there} >= {CARD, "config.json"} and weights:
        return sorted([*weights, *({*there} & {*MODEL, *TOKENIZER, *tfidf.FILES})])
    raise StudioError(f"{folder} holds neither an exported adapter nor a merged model. Export it first, then push it.")


def card(folder: Path, repo_id: str) -> str:
    """Return the model card as it is pushed, with the model's name on the hub."""
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    return LOCAL_BASE.sub("", text, count=1).replace(PLACE, repo_id)


def safe_name(text: str) -> str:
    """Turn a text into a valid repository name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:NAME_LENGTH].rstrip("-")
    return name or "adapter"


def check_repo_id(repo_id: str) -> None:
    """Raise StudioError if this is not a valid repository id; the repository need not exist."""
    try:
        validate_repo_id(repo_id)
        sound = repo_id.count("/") == 1 and repo_id.isascii()
    except HFValidationError:
        sound = False
    if not sound:
        # The input is not repeated, because it may be a token in the wrong field.
        raise StudioError(
            "Name the repository as NAME/REPO, your name on the hub first. REPO has up to 96 letters, digits, '-', '_' "
            "and '.', and neither begins nor ends with '-' or '.'."
        )


def stored_token() -> str:
    """Return `$HF_TOKEN`, or the token of `hf auth login`.

    Raises:
        StudioError: there is neither.
    """
    token = get_token()
    if token is None:
        raise StudioError(
            f"There is no token for the hub. Run `hf auth login`, or set HF_TOKEN, with a write token from {TOKENS}."
        )
    return token


def _push(api: HfApi, folder: Path, names: list[str], repo_id: str, private: bool, progress: Progress) -> str:
    progress(0.0, f"Opening {repo_id} on the hub …")
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise StudioError(
            f"{repo_id} is on the hub already, and public. Push it as public, make it private there first, or name "
            "another repository."
        )
    size = sum((folder / name).stat().st_size for name in names)
    progress(0.1, f"Uploading {len(names)} files, {size / 1e6:,.1f} MB …")
    added = [CommitOperationAdd(name, folder / name) for name in names if name != CARD]
    added.append(CommitOperationAdd(CARD, card(folder, repo_id).encode()))
    api.create_commit(repo_id, added, commit_message="Upload with JetMoE Studio")
    progress(1.0, f"{repo_id} is on the hub")
    return str(url)


def _api(token: str) -> HfApi:
    return HfApi(token=token, library_name="jetmoe-studio")


def _checked(token: str) -> str:
    token = token.strip()
    if not re.fullmatch("[!-~]{1,9999}", token):
        raise StudioError(
            f"This is not a token of the hub: it is empty, or has spaces or invalid characters. Copy one from {TOKENS}."
        )
    return token


def _sentence(error: Exception, repo_id: str, answers: dict[int, str]) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _answer(cause, repo_id, answers)
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing is pushed. Unset it and push again."
        if isinstance(cause, PermissionError) and cause.errno is None:  # from the service that stores large files
            return answers[401].format(tokens=TOKENS)
        if isinstance(cause, HTTPError | ConnectionError | TimeoutError):
            return (
                f"The hub can't be reached ({type(cause).__name__}). Check the network and push again; uploaded files "
                "are kept."
            )
    return f"The upload to {repo_id} failed: {type(error).__name__}, {_short(str(error))}. Push again."


def _answer(error: HfHubHTTPError, repo_id: str, answers: dict[int, str]) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"The hub has an internal error (HTTP {status}). Push again later; uploaded files are kept."
    other = f"The hub refuses the push to {{repo}} (HTTP {status}): {{message}}"
    message = _short(error.server_message or "it gives no reason.")
    return answers.get(status, other).format(repo=repo_id, tokens=TOKENS, message=message)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, because upload errors are often wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
