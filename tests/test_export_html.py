"""The offline page and its server: what is inside, what is refused, and that nothing gets in or out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import re
import socket
import struct
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdx_cli.errors import InputRejected, ResourceError, UsageError
from hdx_cli.export import html
from hdx_cli.export.server import serve

VIEWER = Path(html.__file__).resolve().parent.parent / "viewer"


def glb_of(document: object, binary: bytes = b"\0\0\0\0") -> bytes:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    content += b" " * (-len(content) % 4)
    chunks = struct.pack("<I4s", len(content), b"JSON") + content + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


GLB = glb_of({"asset": {"version": "2.0"}, "extensionsUsed": ["KHR_gaussian_splatting"]}, bytes(range(256)))


class Page(HTMLParser):
    """A page as a browser takes it apart: elements with their attributes and texts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open = ""
        self.feed(content.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def policy(self) -> str:
        (found,) = [a["content"] for tag, a in self.elements if a.get("http-equiv") == "Content-Security-Policy"]
        return found or ""


def test_the_page_holds_the_glb_and_only_its_own_script() -> None:
    page = Page(html.viewer_page(GLB, "Ada"))
    packed, script = page.texts["script"]
    assert gzip.decompress(base64.b64decode(packed, validate=True)) == GLB
    (style,) = page.texts["style"]
    policy = dict(part.split(" ", 1) for part in page.policy().split("; "))
    for directive, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["connect-src"] == "'none'"
    # no element points anywhere, and no element carries script or style that the policy would refuse
    for tag, attributes in page.elements:
        assert all(
            (value or "").startswith("data:") for name, value in attributes.items() if name in ("src", "href")
        ), tag
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag


@pytest.mark.parametrize(
    "title",
    [
        "</title></script><script>alert(1)</script>",
        '"><img src=x onerror=1>',
        "{{avatar}}{{title}}",
        "Zoë & 雪 😀",
        "&amp;",
    ],
)
def test_titles_are_text(title: str) -> None:
    plain, page = Page(html.viewer_page(GLB, "Ada")), Page(html.viewer_page(GLB, title))
    assert page.texts["title"] == [title]
    assert page.elements == plain.elements
    assert page.texts["script"] == plain.texts["script"]


@given(st.text(st.characters(), max_size=300))
def test_no_title_changes_the_page(title: str) -> None:
    page = Page(html.viewer_page(GLB, title))
    assert page.elements == Page(html.viewer_page(GLB, "Ada")).elements
    assert len(page.texts["title"][0]) <= html.LONGEST_TITLE


def test_the_same_avatar_gives_the_same_file(tmp_path: Path) -> None:
    html.write_html(tmp_path / "a.html", GLB, "Ada")
    assert (tmp_path / "a.html").read_bytes() == html.viewer_page(GLB, "Ada")


DAMAGED = {
    "empty": b"",
    "no glb": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "cut short": GLB[:-1],
    "longer than it says": GLB + b"\0",
    "version 1": GLB[:4] + b"\1" + GLB[5:],
    "JSON beyond the end": GLB[:12] + struct.pack("<I", 2**32 - 1) + GLB[16:],
    "no JSON": glb_of(b"not json"),
    "NaN for an object": glb_of(b"NaN"),
    "deep": glb_of(b"[" * 200_000),
    "not UTF-8": glb_of(b'{"a": "\xff"}'),
    "a mesh": glb_of({"asset": {"version": "2.0"}}),
    "extensions that are no list": glb_of({"extensionsUsed": 3}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_avatar_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputRejected) as caught:
        html.write_html(tmp_path / "a.html", DAMAGED[name], "Ada")
    assert "\n" not in caught.value.message
    assert not list(tmp_path.iterdir())


@given(st.integers(0, len(GLB) - 1), st.binary(max_size=20))
def test_damage_raises_nothing_else(at: int, noise: bytes) -> None:
    damaged = GLB[:at] + noise + GLB[at + len(noise) :]
    try:
        html.viewer_page(damaged, "Ada")
    except InputRejected:
        pass


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MOST_BYTES", len(GLB) - 1)
    with pytest.raises(InputRejected, match="larger") as caught:
        html.viewer_page(GLB, "Ada")
    assert caught.value.code == "E_TOO_LARGE"


@pytest.mark.parametrize("content", [None, "no marks", "{{title}} {{title}} {{avatar}}"])
def test_a_missing_viewer_is_named(content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "TEMPLATE", tmp_path / "viewer.html")
    if content is not None:
        html.TEMPLATE.write_text(content)
    with pytest.raises(ResourceError) as caught:
        html.viewer_page(GLB, "Ada")
    assert "pip install" in (caught.value.hint or "")


def test_the_built_page_is_up_to_date() -> None:
    digest = hashlib.sha256()
    for path in sorted((VIEWER / "src").iterdir()):
        digest.update(path.read_bytes())
    built = re.search(r"hdx viewer, source (\w+)", html.TEMPLATE.read_text(encoding="utf-8"))
    assert built and built[1] == digest.hexdigest(), "run: cd hdx_cli/viewer && npm ci && npm run build"


def ask(address: str, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """One request, with exactly the headers given: Host as well."""
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, dict(response.getheaders())


def test_the_server_serves_one_page_to_this_machine_alone() -> None:
    page = html.viewer_page(GLB, "Ada")
    with serve(page) as address:
        own = address.removeprefix("http://").rstrip("/")
        port = own.split(":")[1]
        assert own == f"127.0.0.1:{port}"
        status, content, headers = ask(address, Host=own)
        assert (status, content) == (200, page)
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert ask(address, Host=f"localhost:{port}")[0] == 200
        status, content, headers = ask(address, "HEAD", Host=own)
        assert (status, content, headers["Content-Length"]) == (200, b"", str(len(page)))
        for foreign in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1.evil.example:{port}",
            "127.0.0.1:1",
        ):
            status, content, _ = ask(address, Host=foreign)
            assert status == 403 and page not in content
        assert ask(address)[0] == 403
        for path in ("/favicon.ico", "/../../etc/passwd", "/?x", f"http://{own}/"):
            assert ask(address, path=path, Host=own)[0] == 404
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(address, method, Host=own)[0] == 501
        # another address of the same machine finds nobody
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", int(port)), timeout=5)
        silent = socket.create_connection(("127.0.0.1", int(port)), timeout=5)
        silent.sendall(b"GE")
    with pytest.raises(OSError):  # over, although somebody still holds a connection
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)
    silent.close()


def test_the_server_ends_when_interrupted() -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), serve(b"page") as address:
        raise KeyboardInterrupt
    assert threading.active_count() <= before  # those of an earlier test may end meanwhile
    with pytest.raises(OSError):
        ask(address, Host=address.removeprefix("http://").rstrip("/"))


def test_ports_that_cannot_be_had() -> None:
    with serve(b"page") as address:
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(ResourceError, match=str(port)), serve(b"other", port):
            pass
    for port in (-1, 65536):
        with pytest.raises(UsageError), serve(b"page", port):
            pass
