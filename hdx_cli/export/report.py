"""The report page of one avatar: photo, film, scores, warnings, files and licences, in one HTML file without network."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #6b6b70; --paper: #fafaf8; --line: #dcdcd8; --good: #3a7d5c }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --faint: #9a9aa0; --paper: #17181a; --line: #34353a } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
.faint, figcaption, th { color: var(--faint); font-weight: normal }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1.2rem; align-items: flex-start }
figure { margin: 0; flex: 1 1 18rem } figure img, figure video, .wide { width: 100%; height: auto; border-radius: 6px;
       background: #fff; border: 1px solid var(--line) }
.pictures figure img, .pictures figure video { max-height: 34rem; object-fit: contain }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .9rem .35rem 0; vertical-align: top;
       border-top: 1px solid var(--line) } td.number { white-space: nowrap; font-variant-numeric: tabular-nums }
code, pre { font: .88em ui-monospace, monospace } pre { overflow-x: auto; padding: .7rem .9rem; margin: .4rem 0;
       border: 1px solid var(--line); border-radius: 6px }
.bar { display: inline-block; height: .55em; background: var(--good); border-radius: 2px; margin-right: .6em }
.warning { border-left: 3px solid #c8862a; padding: .1rem 0 .1rem .8rem; margin: .5rem 0 }
"""
# scripts, frames and everything from elsewhere are forbidden to the page
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Report:
    """What the page shows. All texts are plain; the page escapes them.

    Attributes:
        title: the photo's name.
        photo, sheet: pictures as JPEG or PNG bytes; film: the turntable as mp4 bytes or None.
        scores: (name, value, what it means).
        seen: for each body part the share of it that the photo showed, in [0, 1].
        warnings: (code, message).
        files: (path inside the folder, size in bytes, what it is for).
        commands: (command, what it does).
        licences: (part, terms).
        made: one line: program, version, time.
    """

    title: str
    photo: bytes
    sheet: bytes
    film: bytes | None
    scores: list[tuple[str, str, str]]
    seen: dict[str, float]
    warnings: list[tuple[str, str]]
    files: list[tuple[str, int, str]]
    commands: list[tuple[str, str]]
    licences: list[tuple[str, str]]
    made: str


def write_report(path: Path, report: Report) -> None:
    """Write the page as UTF-8 HTML."""
    # bytes of a file name that are no text become question marks
    path.write_text(page_of(report), encoding="utf-8", errors="replace")


def page_of(report: Report) -> str:
    """The page as HTML text."""
    film = ""
    if report.film is not None:
        source = data_uri(report.film, "video/mp4")
        film = f'<figure><video src="{source}" autoplay loop muted playsinline controls></video>' \
               "<figcaption>one turn round the avatar</figcaption></figure>"  # fmt: skip
    warnings = "".join(
        f'<p class="warning">{_text(message)} <span class="faint">{_text(code)}</span></p>'
        for code, message in report.warnings
    )
    scores = "".join(
        f'<tr><td>{_text(name)}</td><td class="number">{_text(value)}</td><td class="faint">{_text(meaning)}</td></tr>'
        for name, value, meaning in report.scores
    )
    seen = "".join(
        f'<tr><td>{_text(part)}</td><td><span class="bar" style="width:{8 * share:.2f}rem"></span>{share:.0%}</td></tr>'
        for part, share in report.seen.items()
    )
    files = "".join(
        f'<tr><td><code>{_text(name)}</code></td><td class="number">{_size(size)}</td><td>{_text(use)}</td></tr>'
        for name, size, use in report.files
    )
    commands = "".join(f"<pre>{_text(line)}</pre><p class='faint'>{_text(what)}</p>" for line, what in report.commands)
    licences = "".join(f"<tr><td>{_text(part)}</td><td>{_text(terms)}</td></tr>" for part, terms in report.licences)
    photo, sheet = (data_uri(picture, _kind(picture)) for picture in (report.photo, report.sheet))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_text(report.title)}</title><style>{STYLE}</style></head><body>
<h1>{_text(report.title)}</h1><p class="faint">{_text(report.made)}</p>
<div class="pictures"><figure><img src="{photo}" alt="the photo"><figcaption>the photo</figcaption></figure>{film}</div>
{f"<h2>To know</h2>{warnings}" if warnings else ""}
<h2>All round</h2><img class="wide" src="{sheet}" alt="eight views of the avatar beside the photo">
<h2>How close it is</h2><table>{scores}</table>
<h2>How much of it the photo showed</h2><p class="faint">The rest is made up from what such people look like.</p><table>{seen}</table>
<h2>Files</h2><table>{files}</table>
<h2>What to do with it</h2>{commands}
<h2>Licences of the parts used</h2><table>{licences}</table>
</body></html>
"""


def _text(words: str) -> str:
    return html.escape(words, quote=True)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a media type as an address that holds them itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _kind(picture: bytes) -> str:
    return "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"


def _size(count: int) -> str:
    if count < 1_000_000:
        return f"{max(1, round(count / 1e3))} kB"
    return f"{count / 1e6:.1f} MB"
