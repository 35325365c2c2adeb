"""Body models of one's own on this machine: converted once to plain arrays, with what is known of them beside.

Under the data folder: ``bodies/smplx-neutral.npz`` and ``bodies/smplx-neutral.json``, which records the sha256 of the
array file and of the file it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from ..errors import InputRejected, ResourceError, UsageError
from .smpl_files import FAMILIES, MAX_NPZ, npz_arrays, read_model, usable_shapes

GENDERS = ("neutral", "female", "male")
MAX_RECORD = 100_000
LICENCE = "for non-commercial research alone, as the smplx package is: smpl-x.is.tue.mpg.de, smpl.is.tue.mpg.de"
_NAME = re.compile(rf"({'|'.join(FAMILIES)})-({'|'.join(GENDERS)})")


@dataclass(frozen=True)
class Added:
    """A body model of one's own.

    Attributes:
        name: as in ``--body``: ``smplx-neutral``; family and gender are its two halves.
        path: of the array file.
        sha256, source_sha256: of that, and of the file it was made from, called ``source``.
        vertices, joints, shapes: how many it has; shapes are directions of shape, not of expression.
    """

    name: str
    path: Path
    sha256: str
    source: str
    source_sha256: str
    vertices: int
    joints: int
    shapes: int

    @property
    def family(self) -> str:
        return self.name.split("-")[0]


def home() -> Path:
    """The data folder: HDX_HOME, else hdx in XDG_DATA_HOME, else ~/.local/share/hdx."""
    if os.environ.get("HDX_HOME"):
        return Path(os.environ["HDX_HOME"]).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data).expanduser().absolute() / "hdx"


def add(path: Path, gender: str | None = None, folder: Path | None = None) -> Added:
    """Read, check and keep a model file; one of the same family and gender is replaced.

    Args:
        path: SMPLX_NEUTRAL.npz or another file that ``smpl_files.read_model`` reads.
        gender: ``neutral``, ``female`` or ``male``; read off the file's name unless told.
        folder: where to keep it; ``home()``/bodies unless told.

    Raises:
        InputRejected: the file is no such model.
        UsageError: the name of the file does not tell the gender.
        ResourceError: the folder cannot be written.
    """
    family, arrays = read_model(path)
    gender = gender or _gender(path)
    if gender not in GENDERS:
        raise UsageError(
            f"{path}: neutral, female or male? Its name does not say", hint=f"hdx body add {path} --gender neutral"
        )
    folder = folder or home() / "bodies"
    name = f"{family.name}-{gender}"
    kept, partial = folder / f"{name}.npz", folder / f"{name}.partial.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            np.savez(partial, **arrays)
            record = Added(
                name, kept, _sha256(partial), path.name, _sha256(path), family.vertices, family.joints,
                usable_shapes(arrays["shapedirs"], family),
            )  # fmt: skip
            os.replace(partial, kept)
        finally:
            partial.unlink(missing_ok=True)
        described = asdict(record) | {"path": kept.name, "licence": LICENCE}
        writing = folder / f"{name}.partial.json"
        writing.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        os.replace(writing, kept.with_suffix(".json"))
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written ({error.strerror})", hint="set HDX_HOME") from None
    return record


def found(folder: Path | None = None) -> list[Added]:
    """All models that were added, by name; what is damaged is left out."""
    folder = folder or home() / "bodies"
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(_read(path))
        except InputRejected:
            continue
    return records


def wanted(name: str, gender: str | None = None, folder: Path | None = None) -> Added:
    """The model that ``--body`` means: ``smplx-female``, or ``smplx`` for that of the gender, the neutral or any.

    Raises:
        UsageError: there is none.
    """
    there = [added for added in found(folder) if name in (added.name, added.family)]
    if not there:
        family = name.split("-")[0]
        example = {"smplx": "SMPLX_NEUTRAL.npz", "smpl": "SMPL_NEUTRAL.pkl"}.get(family, "SMPLX_NEUTRAL.npz")
        raise UsageError(
            f"--body {name}: no such body model was added", hint=f"hdx body add {example}", code="E_NO_BODY"
        )
    for suffix in (gender, "neutral"):
        for added in there:
            if added.name == f"{added.family}-{suffix}":
                return added
    return there[0]


def arrays_of(added: Added) -> dict[str, np.ndarray]:
    """The arrays of an added model.

    Raises:
        InputRejected: the file is missing or not the one that was added.
    """
    hint = f"hdx body add {added.source}"
    if not added.path.is_file():
        raise InputRejected(f"{added.path}: no such file", hint=hint, code="E_MISSING")
    if _sha256(added.path) != added.sha256:
        raise InputRejected(
            f"{added.path}: not the file that was added: damaged or edited", hint=hint, code="E_DAMAGED"
        )
    return npz_arrays(added.path, None, MAX_NPZ)


def _read(path: Path) -> Added:
    try:
        if path.stat().st_size > MAX_RECORD:
            raise ValueError("far too long")
        content = json.loads(path.read_bytes())
        if not _NAME.fullmatch(content["name"]) or content["name"] != path.stem:
            raise ValueError("not the record of a body model")
        values = {field.name: content[field.name] for field in fields(Added)}
        numbers = ("vertices", "joints", "shapes")
        if not all(isinstance(value, int if name in numbers else str) for name, value in values.items()):
            raise ValueError("values of other kinds")
        return Added(**values | {"path": path.with_suffix(".npz")})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputRejected(f"{path}: damaged ({error})", code="E_DAMAGED") from None


def _gender(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", path.stem.lower())
    letters = {"f": "female", "m": "male", "n": "neutral"}
    named = [word for word in words if word in GENDERS] or [letters[word] for word in words if word in letters]
    return named[0] if named else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
