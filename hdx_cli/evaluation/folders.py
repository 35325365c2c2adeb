"""Folders of pictures: which belong together, and reading them one at a time. No folder is ever written to here."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputRejected, NothingToDo
from ..progress import Progress
from .metrics import away_from, even_orbit

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS, LEAST_SIDE_PX = 6_000_000, 16
MOST_VIEWS, MOST_SUBJECTS = 1000, 10_000
MOST_BYTES = 10_000_000  # of a file of cameras
WHITE = 0.97  # a pixel next to the border that is at least so bright in every channel is background


@dataclass(frozen=True)
class Picture:
    """One view over white.

    Attributes:
        rgb: sRGB colours over white [H W 3] in [0, 1]; alpha: [H W] in [0, 1].
        alpha_is_known: the file had alpha; else it was told apart from the white background.
    """

    rgb: Float[Tensor, "H W 3"]
    alpha: Float[Tensor, "H W"]
    alpha_is_known: bool


@dataclass(frozen=True)
class Subject:
    """One person's pictures.

    Attributes:
        views: (predicted, true) file of each view, in the order of the orbit.
        closing: the predicted view after the last, which shows the first again, or None.
        away_deg: how far each view's direction lies from that of the input view, degrees in [0, 180].
    """

    name: str
    views: tuple[tuple[Path, Path], ...]
    closing: Path | None
    away_deg: Float[np.ndarray, "V"]


def find_subjects(predicted: Path, true: Path, progress: Progress, input_view: int = 0) -> list[Subject]:
    """The people in two folders, matched by the names of their subfolders and their views by the names of the files.

    Each folder holds pictures (one person), or one subfolder per person, whose pictures may lie in its ``views``. Views
    whose names have nothing in common but their number are matched in order. ``cameras.json`` (of hdx) or ``cams.npz``
    beside the true pictures tells their directions; otherwise they stand evenly round the person.

    Args:
        input_view: the view that the avatar was made from.

    Raises:
        NothingToDo: there are no pictures.
        InputRejected: something does not match; every mismatch is told by ``progress.warn`` first.
    """
    ours, theirs = _people(predicted), _people(true)
    if len(ours) == len(theirs) == 1:
        ours = {next(iter(theirs)): next(iter(ours.values()))}
    wrong = [f"{predicted}: has no folder {name}, which {true} has" for name in theirs if name not in ours]
    wrong += [f"{true}: has no folder {name}, which {predicted} has" for name in ours if name not in theirs]
    subjects = []
    for name in theirs:
        if name in ours:
            found = _matched(name, ours[name], theirs[name], input_view, progress)
            if isinstance(found, Subject):
                subjects.append(found)
            else:
                wrong += found
    if wrong:
        for line in wrong:
            progress.warn("W_MISMATCH", line)
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputRejected(f"{wrong[0]}{more}", code="E_MISMATCH")
    return subjects


def read_picture(path: Path) -> Picture:
    """One view, PNG, JPEG or WebP of up to 6 megapixels: straight RGBA, or RGB over white.

    Without alpha the person is what is not white and joined to the border; white clothes at the border go missing.

    Raises:
        InputRejected: unreadable, damaged, too large or too small.
    """
    pixels = _pixels(path).astype(np.float32) / np.float32(255)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        rgb = pixels[..., :3] * alpha[..., None] + 1 - alpha[..., None]
        return Picture(torch.from_numpy(rgb), torch.from_numpy(np.ascontiguousarray(alpha)), True)
    return Picture(torch.from_numpy(pixels), torch.from_numpy(_not_background(pixels)), False)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height in px from the header alone.

    Raises:
        InputRejected: as ``read_picture``.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise InputRejected(f"{path}: not a readable PNG, JPEG or WebP", code="E_DECODE") from None
    if width * height > MOST_PIXELS or min(width, height) < LEAST_SIDE_PX:
        limit = f"{LEAST_SIDE_PX} px a side to {MOST_PIXELS // 10**6} megapixels"
        raise InputRejected(f"{path}: {width} x {height} px is outside of {limit}", code="E_SIZE")
    return width, height


def _people(folder: Path) -> dict[str, Path]:
    """Folders of pictures by the person's name."""
    if not folder.is_dir():
        raise NothingToDo(f"{folder}: no such folder", code="E_NO_FILE")
    if _pictures(folder):
        return {folder.name: folder}
    people = {}
    for entry in sorted(folder.iterdir()):
        place = next((at for at in (entry, entry / "views") if at.is_dir() and _pictures(at)), None)
        if place is not None:
            people[entry.name] = place
    if not people:
        raise NothingToDo(f"{folder}: no pictures ({', '.join(SUFFIXES)}) in it or in its subfolders", code="E_EMPTY")
    if len(people) > MOST_SUBJECTS:
        raise InputRejected(f"{folder}: more than {MOST_SUBJECTS} people", code="E_SIZE")
    return people


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, 2 before 10."""
    found = (entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
    return sorted(found, key=lambda path: _key(path.stem))


def _key(stem: str) -> list[tuple[int, int, str]]:
    """Text and numbers of a name, numbers by value; 7, 07 and 007 are the same."""
    pieces = re.split(r"(\d{1,18})", stem)
    return [(1, int(piece), "") if piece.isascii() and piece.isdigit() else (0, 0, piece) for piece in pieces]


def _matched(name: str, ours: Path, theirs: Path, input_view: int, progress: Progress) -> Subject | list[str]:
    """A person's views, or what is wrong with them, one line each."""
    mine = {str(_key(path.stem)): path for path in _pictures(ours)}
    true = {str(_key(path.stem)): path for path in _pictures(theirs)}
    if len(true) > MOST_VIEWS:
        return [f"{theirs}: more than {MOST_VIEWS} views"]
    closing = None
    if mine.keys() & true.keys():
        extra = [path for key, path in mine.items() if key not in true]
        if len(extra) == 1 and extra[0] == list(mine.values())[-1] and not true.keys() - mine.keys():
            closing = extra.pop()
        wrong = [
            f"{ours}: has no view {path.name}, which {theirs} has" for key, path in true.items() if key not in mine
        ]
        wrong += [f"{theirs}: has no view {path.name}, which {ours} has" for path in extra]
        pairs = [(mine[key], true[key]) for key in true if key in mine]
    elif len(mine) == len(true):
        progress.warn("W_ORDER", f"{ours}: views are matched with those of {theirs} in order, as their names differ")
        wrong, pairs = [], list(zip(mine.values(), true.values(), strict=True))
    else:
        return [f"{ours}: {len(mine)} views, but {theirs} has {len(true)}, and their names differ"]
    for path, other in pairs:
        try:
            sizes = size_of(path), size_of(other)
        except InputRejected as error:
            wrong.append(error.message)
            continue
        if sizes[0] != sizes[1]:
            (w, h), (ow, oh) = sizes
            wrong.append(f"{path}: {w} x {h} px, but {other} has {ow} x {oh}")
    if closing is not None and pairs and not wrong and size_of(closing) != size_of(pairs[0][0]):
        wrong.append(f"{closing}: not of the size of the other views")
    if not wrong and not 0 <= input_view < len(pairs):
        wrong.append(f"{ours}: there is no view {input_view} among {len(pairs)}")
    if wrong:
        return wrong
    rotations = _rotations(theirs, len(pairs))
    away = even_orbit(len(pairs), input_view) if rotations is None else away_from(rotations, input_view)
    return Subject(name, tuple(pairs), closing, away)


def _rotations(folder: Path, views: int) -> Float[np.ndarray, "V 3 3"] | None:
    """World-to-camera rotations of the views, where a file tells them."""
    described, archive = folder / "cameras.json", folder / "cams.npz"
    if not described.exists() and not archive.exists():
        return None
    path = described if described.exists() else archive
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES} bytes")
        if path == described:
            found = np.asarray(json.loads(path.read_bytes())["viewmats"], np.float64)
        else:
            with zipfile.ZipFile(path) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > MOST_BYTES:
                    raise ValueError(f"larger than {MOST_BYTES} bytes when unpacked")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = np.asarray(arrays["R"], np.float64)
        rotations = found[:, :3, :3]
        if rotations.shape != (views, 3, 3) or not np.isfinite(rotations).all():
            raise ValueError(f"cameras for {views} views are needed")
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputRejected(f"{path}: not the cameras of the pictures beside it ({reason})", code="E_DAMAGED") from None
    return rotations


def _pixels(path: Path) -> UInt8[np.ndarray, "H W C"]:
    """8-bit RGB or RGBA."""
    size_of(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits a channel")
            return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputRejected(f"{path}: damaged or not 8 bit ({reason})", code="E_DECODE") from None


def _not_background(rgb: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """1 where a pixel is not part of the white that reaches the border."""
    white = np.pad((rgb.min(axis=2) >= WHITE).astype(np.uint8), 1, constant_values=1)
    _, labels = cv2.connectedComponents(white, connectivity=4)
    return (labels != labels[0, 0])[1:-1, 1:-1].astype(np.float32)
