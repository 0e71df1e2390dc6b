"""Push a run's adapter to the Hugging Face Hub: the account to use, and the HTML of the page.

sentence = destination(owner)                          # raises StudioError if there is no account
account = account_of(owner, profile, token)        # valid for this request; must not be stored
html = preview(folder, account.repository("pirate"))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from studio.backend.export import hub
from studio.errors import StudioError
from studio.ui.common.card import card, problem
from studio.ui.server import sign_in

if TYPE_CHECKING:
    import gradio as gr

NAME = "Push"
SIGN_IN = (
    "Sign in with Hugging Face at the top of the page to push the adapter to your account. Your existing runs and "
    "files move to that account too, unless your browser blocks cookies in frames."
)
ELSEWHERE = (
    "This studio can't push to your account, because it does not know your account on the Hub. Download and unpack the "
    "adapter, then run `hf upload NAME/REPO adapter`. On the server, you can also run "
    "`python -m studio export RUN --to DIR --push NAME/REPO`."
)
EXPORT_FIRST = "Export the adapter first and check its model card. The export is what gets pushed."


@dataclass(frozen=True)
class Account:
    """The account that will own the repository."""

    token: str = field(repr=False)
    name: str = ""
    """Name of the signed-in account; empty for the account that owns the token."""

    def repository(self, text: str) -> str:
        """Return NAME/REPO for the typed text, in which NAME is optional.

        Raises:
            StudioError: the name is invalid or belongs to another account, or the Hub can't be reached.
        """
        text = text.strip()
        if "/" not in text:
            text = f"{self.name or hub.account(self.token)}/{text}"
        hub.check_repo_id(text)
        if self.name and text.partition("/")[0] != self.name:
            raise StudioError(f"You are signed in as {self.name}. Use a repository of this account: {self.name}/REPO.")
        return text


def destination(owner: str) -> str:
    """Return a sentence about the account that the owner's adapters are pushed to.

    Raises:
        StudioError: there is no account; the message says what to do instead.
    """
    if not owner:
        hub.stored_token()
        return "The adapter and its model card go to the account of this machine's token, or one it can write to."
    if owner.startswith(sign_in.OWNER):
        return f"The adapter and its model card go to your account, {owner.removeprefix(sign_in.OWNER)}."
    raise StudioError(SIGN_IN if sign_in.offered() else ELSEWHERE)


def account_of(owner: str, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> Account:
    """Return the account for a request of this owner with this profile and token.

    Raises:
        StudioError: there is no account; the message says what to do instead.
    """
    destination(owner)
    if not owner:
        return Account(hub.stored_token())
    # Gradio also passes on a token that a client put into the request.
    if profile is None or token is None or owner != f"{sign_in.OWNER}{profile.username}":
        raise StudioError(SIGN_IN)
    if sign_in.SCOPE not in token.scope.split():
        raise StudioError(
            "Your sign-in does not let the studio create repositories. Sign out, sign in again, and allow it."
        )
    return Account(token.token, profile.username)


def preview(folder: Path, repo_id: str) -> str:
    """Return the files and the model card that a push would upload, as HTML."""
    names = ", ".join(hub.files(folder))
    return card(
        NAME,
        f"<p>Files for {escape(repo_id)}: {escape(names)}</p>"
        f'<details class="dp-table"><summary>Model card on the Hub</summary>'
        f'<pre class="dp-text" tabindex="0">{escape(hub.card(folder, repo_id).strip())}</pre></details>',
    )


def done(address: str, public: bool) -> str:
    who = "It is public." if public else "It is private."
    link = f'<a href="{escape(address, quote=True)}" target="_blank" rel="noopener">{escape(address)}</a>'
    return card(NAME, f'<p role="status">Pushed to {link}. {who}</p>')


def failed(text: str) -> str:
    return card(NAME, problem(text))
