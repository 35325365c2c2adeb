"""The report page: parsed again by the standard library's HTML parser."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hdx_cli.export.report import POLICY, Report, page_of

HOSTILE = "</title><script>alert(1)</script> \"quoted\" 'single' & Żółw 日本"
PLAIN = Report(
    "photo", b"\xff\xd8\xff picture", b"\x89PNG sheet", b"film", [("front PSNR", "36.2 dB", "how close")], {"head": 0.5},
    [("W_CODE", "the photo is dark")], [("exports/avatar.ply", 3_400_000, "for splat viewers")],
    [("hdx view run", "opens it")], [("the avatar", "yours")], "made by hdx",
)  # fmt: skip


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_on_the_page_and_nothing_comes_from_elsewhere() -> None:
    page = Page(page_of(PLAIN))
    for words in ("36.2 dB", "50%", "the photo is dark", "3.4 MB", "hdx view run", "yours", "made by hdx"):
        assert words in page.text
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    held = [base64.b64decode(source.split("base64,")[1]) for source in sources]
    assert held == [PLAIN.photo, PLAIN.film, PLAIN.sheet] and all(source.startswith("data:") for source in sources)
    assert not any("href" in attrs for _, attrs in page.tags)
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [attrs for _, attrs in page.tags]


def test_without_film_and_warnings_their_places_are_left_out() -> None:
    page = Page(page_of(replace(PLAIN, film=None, warnings=[])))
    assert "video" not in [tag for tag, _ in page.tags] and "To know" not in page.text


@pytest.mark.parametrize(
    "report",
    [
        replace(PLAIN, title=HOSTILE),
        replace(PLAIN, made=HOSTILE),
        replace(PLAIN, scores=[(HOSTILE, "1", "x")]),
        replace(PLAIN, seen={HOSTILE: 0.1}),
        replace(PLAIN, warnings=[("W", HOSTILE)]),
        replace(PLAIN, files=[(HOSTILE, 1, "x")]),
        replace(PLAIN, commands=[(HOSTILE, "x")]),
        replace(PLAIN, licences=[("x", HOSTILE)]),
    ],
)
def test_names_cannot_become_markup(report: Report) -> None:
    page = Page(page_of(report))
    assert HOSTILE in page.text  # read back as it was
    assert "script" not in [tag for tag, _ in page.tags]
    assert [tag for tag, _ in page.tags].count("title") == 1
