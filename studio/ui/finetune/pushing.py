"""Pushing a run's adapter to the Hugging Face Hub: whose account it goes to, and what the page shows of it.

sentence = goes_to(owner)                          # raises StudioError: to nobody's, and what to do instead
account = account_of(owner, profile, token)        # of this request; nothing may keep it
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
    "Sign in with Hugging Face at the top of the page, and the adapter goes to your own account from here. What you "
    "made here before moves there too, unless your browser blocks the cookies of pages in frames."
)
ELSEWHERE = (
    "This studio has no way of knowing your account on the Hub, so nothing is pushed from here. Download the adapter, "
    "unpack it, and `hf upload NAME/REPO adapter` pushes it; or where the studio runs, "
    "`python -m studio export RUN --to DIR --push NAME/REPO`."
)
EXPORT_FIRST = "Export the adapter first, and look at its model card: that is what is pushed."


@dataclass(frozen=True)
class Account:
    """Whose the repository will be."""

    token: str = field(repr=False)
    name: str = ""
    """Of who is signed in. Empty: of whom the hub says that the token is."""

    def repository(self, text: str) -> str:
        """NAME/REPO of what was typed; NAME may be left out.

        Raises:
            StudioError: it is no name, that of somebody else than who is signed in, or the hub can't be asked.
        """
        text = text.strip()
        if "/" not in text:
            text = f"{self.name or hub.account(self.token)}/{text}"
        hub.check_repo_id(text)
        if self.name and text.partition("/")[0] != self.name:
            raise StudioError(f"You are signed in as {self.name}, so name a repository of yours: {self.name}/REPO.")
        return text


def goes_to(owner: str) -> str:
    """The account that an owner's page pushes to, as a sentence.

    Raises:
        StudioError: there is none; it says what to do instead.
    """
    if not owner:
        hub.stored_token()
        return "The adapter and its model card go to the account of this machine's token, or another that it may use."
    if owner.startswith(sign_in.OWNER):
        return f"The adapter and its model card go to your account, {owner.removeprefix(sign_in.OWNER)}."
    raise StudioError(SIGN_IN if sign_in.offered() else ELSEWHERE)


def account_of(owner: str, profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> Account:
    """The account of an owner whose request came with this profile and token.

    Raises:
        StudioError: there is none; it says what to do instead.
    """
    goes_to(owner)
    if not owner:
        return Account(hub.stored_token())
    # Gradio also hands over a token that somebody put into a request.
    if profile is None or token is None or owner != f"{sign_in.OWNER}{profile.username}":
        raise StudioError(SIGN_IN)
    if sign_in.SCOPE not in token.scope.split():
        raise StudioError(
            "Your sign-in does not let the studio make repositories. Sign out, sign in again, and allow it."
        )
    return Account(token.token, profile.username)


def preview(folder: Path, repo_id: str) -> str:
    """The files that arrive, and the model card as it will be."""
    names = ", ".join(hub.files(folder))
    return card(
        NAME,
        f"<p>Arrives at {escape(repo_id)}: {escape(names)}</p>"
        f'<details class="dp-table"><summary>The model card, as it will be on the Hub</summary>'
        f'<pre class="dp-text" tabindex="0">{escape(hub.card(folder, repo_id).strip())}</pre></details>',
    )


def done(address: str, public: bool) -> str:
    who = "Everybody can see it." if public else "It is private."
    link = f'<a href="{escape(address, quote=True)}" target="_blank" rel="noopener">{escape(address)}</a>'
    return card(NAME, f'<p role="status">It is at {link}. {who}</p>')


def failed(text: str) -> str:
    return card(NAME, problem(text))
