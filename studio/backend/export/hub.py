"""Puts an exported folder on the Hugging Face Hub, where it is private unless told otherwise.

push(Path("pirate"), "me/pirate", stored_token())      # "https://huggingface.co/me/pirate"
card(Path("pirate"), "me/pirate")                      # the model card that arrives

The token goes to the hub and nowhere else: no file, log or message of the studio has it.
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
# The hub takes only models of its own for the base of another.
LOCAL_BASE = re.compile(r"^base_model: [^/\n]+\nbase_model_relation: .*\n", re.MULTILINE)
NAME_LENGTH = 60
MODEL_WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors"
TOKENS = "https://huggingface.co/settings/tokens"
# What a person can do about what the hub answers, by its status.
ANSWERS = {
    401: "The hub refuses the token. Make one with write access at {tokens} and use that.",
    402: "The account of {repo} has no room left on the hub. Make room there, or push to another one.",
    403: "The token may not write to {repo}. Use one that may (see {tokens}), or name a repository of yours.",
    404: "The hub has no {repo} that this token may write to. Check the name, and the token's rights at {tokens}.",
    409: "Somebody else is changing {repo} right now. Push again in a moment.",
    429: "The hub has had too many requests from you. Wait some minutes, then push again; what has arrived is kept.",
}


# Of a token that a person got by signing in on a Space.
ANSWERS_SIGNED_IN = ANSWERS | {
    401: "The hub takes your sign-in no more. Sign out at the top of the page, sign in again, then push again.",
    403: "The studio may not write to {repo}: by your sign-in it makes repositories, and writes to those alone that it "
    "made. Push under a name that you have no repository of yet.",
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
    """Uploads what `export` wrote, and nothing else that lies there, at once; the address of the repository.

    Args:
        repo_id: NAME/REPO; made where it is not there yet.
        private: for you alone to see. A public repository that is there already is refused then.
        signed_in: the token is that of a sign-in on a Space.

    Raises:
        StudioError: no export in the folder, a name or token that is none, or the hub can't be reached or refuses.
    """
    names = files(folder)
    check_repo_id(repo_id)
    token = _checked(token)
    try:
        return _push(_api(token), folder, names, repo_id, private, progress)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        sentence = _sentence(error, repo_id, ANSWERS_SIGNED_IN if signed_in else ANSWERS)
    # Raised out here, because what the hub answered may repeat the token and would be in the traceback.
    raise StudioError(sentence.replace(token, "***"))


def account(token: str) -> str:
    """The name on the hub of whose token it is. Raises StudioError: it is none, or the hub can't be reached."""
    token = _checked(token)
    try:
        return _api(token).whoami()["name"]
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        sentence = _sentence(error, "your account", ANSWERS)
    raise StudioError(sentence.replace(token, "***"))


def files(folder: Path) -> list[str]:
    """The names of those that are pushed: what `export` writes.

    Raises:
        StudioError: no export is in the folder.
    """
    there = [file.name for file in folder.glob("*") if file.is_file() and not file.is_symlink()]
    weights = [name for name in there if re.fullmatch(MODEL_WEIGHTS, name)]
    if set(there) >= ADAPTER:
        return sorted(ADAPTER | ({*there} & {"config.json"}))  # which names a classifier's labels
    if {*there} >= {CARD, "config.json"} and weights:
        return sorted([*weights, *({*there} & (MODEL | TOKENIZER))])
    raise StudioError(f"{folder} holds neither an exported adapter nor a merged model. Export it first, then push it.")


def card(folder: Path, repo_id: str) -> str:
    """The model card as it is on the hub: with the name that the model has there."""
    text = (folder / CARD).read_text(encoding="utf-8")
    return LOCAL_BASE.sub("", text, count=1).replace(PLACE, repo_id)


def safe_name(text: str) -> str:
    """A name that a repository may have, as close to this text as that can be."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-")[:NAME_LENGTH].rstrip("-")
    return name or "adapter"


def check_repo_id(repo_id: str) -> None:
    """Raises StudioError: it is no name of a repository, whether there is one or not."""
    try:
        validate_repo_id(repo_id)
        sound = repo_id.count("/") == 1 and repo_id.isascii()
    except HFValidationError:
        sound = False
    if not sound:
        # Without what was given: a token that was put in the wrong place would be shown.
        raise StudioError(
            "Name the repository as NAME/REPO, your name on the hub first. REPO has up to 96 letters, digits, '-', '_' "
            "and '.', and neither begins nor ends with '-' or '.'."
        )


def stored_token() -> str:
    """`$HF_TOKEN`, or that of `hf auth login`. Raises StudioError: there is neither."""
    token = get_token()
    if token is None:
        raise StudioError(
            f"There is no token for the hub. Run `hf auth login`, or set HF_TOKEN, with one of {TOKENS} that may write."
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
            f"This is no token of the hub: it is empty, or has spaces or letters that none has. See {TOKENS}."
        )
    return token


def _sentence(error: Exception, repo_id: str, answers: dict[int, str]) -> str:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _answer(cause, repo_id, answers)
        if isinstance(cause, OfflineModeIsEnabled):
            return "The studio is told to stay offline (HF_HUB_OFFLINE), so nothing is pushed. Unset it and push again."
        if isinstance(cause, PermissionError) and cause.errno is None:  # of the service that stores large files
            return answers[401].format(tokens=TOKENS)
        if isinstance(cause, HTTPError | ConnectionError | TimeoutError):
            return (
                f"The hub can't be reached ({type(cause).__name__}). Check the network and push again; what has "
                "arrived is kept."
            )
    return f"The upload to {repo_id} failed: {type(error).__name__}, {_short(str(error))}. Push again."


def _answer(error: HfHubHTTPError, repo_id: str, answers: dict[int, str]) -> str:
    status = error.response.status_code
    if status >= 500:
        return f"The hub has trouble of its own (HTTP {status}). Push again later; what has arrived is kept."
    other = f"The hub refuses what is pushed to {{repo}} (HTTP {status}): {{message}}"
    message = _short(error.server_message or "it doesn't say why.")
    return answers.get(status, other).format(repo=repo_id, tokens=TOKENS, message=message)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An upload's error is often wrapped in another."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
