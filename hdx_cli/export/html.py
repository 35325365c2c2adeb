"""The avatar and a viewer as one .html that needs no network: opened by double click, from a mail or a stick.

The page is ``viewer/dist/viewer.html``, built from ``viewer/src`` (see ``viewer/README.md``), with two marks left open:
the title, and the .glb (``export.glb``) as gzip in base64. Its Content-Security-Policy allows its own script and style,
by their hashes, and no connection at all.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import struct
from pathlib import Path

from ..errors import InputRejected, ResourceError

TEMPLATE = Path(__file__).resolve().parent.parent / "viewer" / "dist" / "viewer.html"
SPLATTING = "KHR_gaussian_splatting"
# Browsers hold a page as one string of at most 2^29 characters; 4/3 of this is well below.
MOST_BYTES = 256 * 2**20
MOST_JSON_BYTES = 16 * 2**20
LONGEST_TITLE = 200


def write_html(path: Path, glb: bytes, title: str) -> None:
    """Write ``viewer_page`` as a file.

    Args:
        path: the file to write.
        glb: what ``export.glb`` wrote.
        title: any text; shown by the browser.

    Raises:
        InputRejected, ResourceError: as ``viewer_page``.
    """
    path.write_bytes(viewer_page(glb, title))


def viewer_page(glb: bytes, title: str) -> bytes:
    """The page, UTF-8: the viewer with the avatar inside. The same input gives the same bytes.

    Raises:
        InputRejected: ``glb`` is no .glb with Gaussians, or is larger than a page can hold.
        ResourceError: the viewer is missing from this installation.
    """
    _check(glb)
    try:
        template = TEMPLATE.read_text(encoding="utf-8")
        head, rest = template.split("{{title}}")
        middle, tail = rest.split("{{avatar}}")
    except (OSError, ValueError):
        raise ResourceError(
            f"{TEMPLATE.name}: missing or damaged in this installation", hint="pip install --force-reinstall hdx-cli"
        ) from None
    # level 6: 9 takes three times as long for less than 1 %
    packed = base64.b64encode(gzip.compress(glb, 6, mtime=0)).decode("ascii")
    shown = html.escape(" ".join(title.split())[:LONGEST_TITLE] or "Avatar")
    return f"{head}{shown}{middle}{packed}{tail}".encode("utf-8", "replace")


def _check(glb: bytes) -> None:
    """Refuse early, with words, what the page would refuse in the reader's browser."""
    if len(glb) > MOST_BYTES:
        raise InputRejected(
            f"the .glb is larger than the {MOST_BYTES // 2**20} MiB a page can hold", code="E_TOO_LARGE"
        )
    if len(glb) < 20 or glb[:8] != b"glTF\2\0\0\0" or struct.unpack("<I", glb[8:12])[0] != len(glb):
        raise InputRejected("not a binary glTF 2.0 file, or cut short", code="E_DECODE")
    length, kind = struct.unpack("<I4s", glb[12:20])
    if kind != b"JSON" or length > min(len(glb) - 20, MOST_JSON_BYTES):
        raise InputRejected("the .glb has no JSON chunk at its start, or a damaged one", code="E_DECODE")
    try:
        document = json.loads(glb[20 : 20 + length])
        used = document.get("extensionsUsed", [])
    except (ValueError, AttributeError, RecursionError):
        raise InputRejected("the .glb has a JSON chunk that is no JSON object", code="E_DECODE") from None
    if not isinstance(used, list) or SPLATTING not in used:
        raise InputRejected(f"the .glb holds no Gaussians ({SPLATTING})", code="E_DECODE")
