"""The contact sheet of many avatars: one HTML file without network or scripts, the closest to its photo first."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from urllib.parse import quote

from .report import POLICY, STYLE, data_uri

CARDS = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.4rem 1.2rem;
       margin-top: 1.2rem }
.cards a { color: inherit; text-decoration: none; display: block } .cards h3 { font-size: .95rem; margin: .5rem 0 0;
       overflow-wrap: anywhere } .cards p { margin: .1rem 0; font-size: .86rem; overflow-wrap: anywhere }
.cards .picture { width: 100%; aspect-ratio: 520 / 268; object-fit: contain; background: #fff; border-radius: 6px;
       border: 1px solid var(--line); display: block } a:hover .picture { border-color: var(--faint) }
.cards .dim { filter: grayscale(.6); opacity: .8 }
"""
HEADINGS = {
    "done": ("Avatars", "The closest to its photo first."),
    "rejected": ("Photos that cannot become an avatar", "The photo is the reason."),
    "failed": ("Failed", "Not the photo's fault, as far as is known; the same command tries them again."),
    "waiting": ("Not begun", ""),
}


@dataclass(frozen=True)
class Card:
    """One photo on the sheet. All texts are plain; the page escapes them.

    Attributes:
        title: its name on the page; photo: where it came from.
        folder: its run folder beside the page, or None where there is no report to open.
        picture: a small JPEG, or None.
        state: one of ``HEADINGS``.
        score: what avatars are sorted by, larger is better, or None.
        scores: for people, each a name and a value.
        notes: warnings, or the reason why it is not done.
        code: of that reason.
    """

    title: str
    photo: str
    folder: str | None
    picture: bytes | None
    state: str
    score: float | None
    scores: list[str]
    notes: list[str]
    code: str | None = None


def page_of(title: str, cards: list[Card], made: str) -> str:
    """The page as HTML text; to be written as UTF-8, letters that are no text as question marks (errors="replace")."""
    sections = []
    for state, (heading, meaning) in HEADINGS.items():
        chosen = [card for card in cards if card.state == state]
        chosen.sort(key=lambda card: (card.score is None, -(card.score or 0.0), card.title))
        if chosen:
            sections.append(
                f'<h2>{heading} <span class="faint">{len(chosen)}</span></h2>'
                f'<p class="faint">{meaning}</p>'
                f'<div class="cards">{"".join(map(_card, chosen))}</div>'
            )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_text(title)}</title><style>{STYLE}{CARDS}</style></head><body>
<h1>{_text(title)}</h1><p class="faint">{_text(made)}</p>
{"".join(sections)}
</body></html>
"""


def _card(card: Card) -> str:
    dim = "" if card.state == "done" else " dim"
    inside = ""
    if card.picture is not None:
        source = data_uri(card.picture, "image/jpeg")
        inside = f'<img class="picture{dim}" alt="" loading="lazy" src="{source}">'
    inside += f"<h3>{_text(card.title)}</h3>"
    if card.folder is not None:
        # begun with ./ and quoted, so that no name is taken for a scheme, a query or another folder
        link = f"./{quote(os.fsencode(card.folder), safe='')}/report.html"
        inside = f'<a href="{link}">{inside}</a>'
    scores = f'<p class="faint">{_text(", ".join(card.scores))}</p>' if card.scores else ""
    code = f' <span class="faint">{_text(card.code)}</span>' if card.code else ""
    notes = "".join(f'<p class="warning">{_text(note)}{code}</p>' for note in card.notes)
    return f'<div>{inside}<p class="faint">{_text(card.photo)}</p>{scores}{notes}</div>'


def _text(words: str) -> str:
    return html.escape(words, quote=True)
