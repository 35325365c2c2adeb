"""Pairs to train HumanFixer on, as files and as batches: shrunken, mirrored, narrowed and recoloured.

One npz per coarse avatar, uint8: ``coarse`` and ``truth`` [18 H W 4] (straight RGBA, view i at an azimuth of 20 i
degrees), ``seen`` [18 H W], ``photo`` [H W 4] (the person of the photo in the window of view 0), ``face`` [64 64 3]
(zeros: none), and the strings ``person`` and ``variant``.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ..humanfixer.attention import VIEWS
from ..humanfixer.restorer import person_columns

VISIBLE = 0.02  # alpha from which a pixel counts as somebody's, as ``person_columns`` has it


@dataclass(frozen=True)
class Pair:
    """One person's views at training size, channels first, over white, uint8."""

    person: str
    coarse: UInt8[Tensor, "18 4 H W"]
    truth: UInt8[Tensor, "18 4 H W"]
    seen: UInt8[Tensor, "18 H W"]
    photo: UInt8[Tensor, "4 H W"]
    face: UInt8[Tensor, "3 64 64"]


@dataclass(frozen=True)
class Batch:
    """What ``HumanFixer.conditions`` takes, and the truth [B 18 4 H W]; all floats in [0, 1]."""

    coarse: Tensor
    truth: Tensor
    seen: Tensor
    photo: Tensor
    faces: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def over_white(rgba: UInt8[np.ndarray, "H W 4"], height: int, width: int) -> UInt8[np.ndarray, "4 h w"]:
    """Straight RGBA to colours over white and alpha at another size; averages are taken of covered colour."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    ink = np.concatenate([rgba[..., :3] * alpha + 255 * (1 - alpha), 255 * alpha], 2)
    if ink.shape[:2] != (height, width):
        smaller = height < len(ink)
        ink = cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.rint(ink).astype(np.uint8).transpose(2, 0, 1)


def load_pair(path: Path, height: int, cache: Path) -> Pair:
    """A pair at ``height`` rows, from the cache where it has been shrunk before."""
    with np.load(shrunken(path, height, cache), allow_pickle=False) as file:
        arrays = {
            n: torch.from_numpy(np.ascontiguousarray(file[n])) for n in Pair.__dataclass_fields__ if n != "person"
        }
        return Pair(person=str(file["person"]), **arrays)


def shrunken(path: Path, height: int, cache: Path) -> Path:
    """The file of a pair at ``height`` rows, made if there is none or an older one; processes may do so at once.

    Raises:
        OSError, ValueError, KeyError, EOFError: it is no pair.
    """
    small = cache / f"{path.stem}.npz"
    if small.is_file() and small.stat().st_mtime >= path.stat().st_mtime:
        with np.load(small, allow_pickle=False) as file:
            if "columns" in file.files:
                return small
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in ("coarse", "truth", "seen", "photo", "face", "person")}
    rows, columns = data["seen"].shape[1:]
    views = (VIEWS, rows, columns)
    shapes = {"coarse": (*views, 4), "truth": (*views, 4), "seen": views, "photo": (*views[1:], 4), "face": (64, 64, 3)}
    for name, shape in shapes.items():
        if data[name].shape != shape or data[name].dtype != np.uint8:
            raise ValueError(f"{name} of shape {data[name].shape} and type {data[name].dtype}")
    width = round(columns * height / rows)
    made = {name: np.stack([over_white(v, height, width) for v in data[name]]) for name in ("coarse", "truth")}
    made["seen"] = np.stack([cv2.resize(v, (width, height), interpolation=cv2.INTER_AREA) for v in data["seen"]])
    made |= {"photo": over_white(data["photo"], height, width), "face": data["face"].transpose(2, 0, 1)}
    made["columns"] = covered_columns(made["coarse"], made["photo"])
    beside = small.with_suffix(f".{os.getpid()}.part")
    with beside.open("wb") as file:
        np.savez(file, person=data["person"], **made)
    os.replace(beside, small)
    return small


def covered_columns(coarse: UInt8[np.ndarray, "18 4 H W"], photo: UInt8[np.ndarray, "4 H W"]) -> Int[np.ndarray, "2"]:
    """First and last column with somebody in it; all columns where nobody is."""
    covered = np.nonzero((np.concatenate([coarse, photo[None]])[:, 3] > VISIBLE * 255).any((0, 1)))[0]
    return np.array([covered[0], covered[-1]] if len(covered) else [0, photo.shape[-1] - 1])


@dataclass(frozen=True)
class Source:
    """A pair that lies on the disk at training size: its file there, whose it is, and the columns with somebody in."""

    path: Path
    person: str
    columns: tuple[int, int]
    width: int

    def load(self) -> Pair:
        with np.load(self.path, allow_pickle=False) as file:
            fields = [name for name in Pair.__dataclass_fields__ if name != "person"]
            return Pair(person=self.person, **{name: torch.from_numpy(file[name]) for name in fields})


def find_pairs(folder: Path, height: int, cache: Path) -> tuple[list[Source], list[tuple[str, str]]]:
    """Every pair of a folder at ``height`` rows in the order of their names, and (file, reason) of those left out.

    All pairs must be as wide as most are.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found, rejected = [], []
    for path in sorted(folder.glob("*.npz")):
        try:
            small = shrunken(path, height, cache)
            with np.load(small, allow_pickle=False) as file:
                width = file["photo"].shape[-1]
                found.append(Source(small, str(file["person"]), tuple(file["columns"].tolist()), width))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, cv2.error) as error:
            rejected.append((path.name, " ".join(str(error).split())[:200] or type(error).__name__))
    widths = [source.width for source in found]
    usual = max(set(widths), key=widths.count, default=0)
    rejected += [(s.path.name, f"{s.width} columns wide, others are {usual}") for s in found if s.width != usual]
    return [source for source in found if source.width == usual], rejected


def is_held_out(person: str, share: float) -> bool:
    """Whether a person is kept apart to measure on: by name alone, so that it is the same whatever else there is."""
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "big") < share * 2**64


def person_number(person: str) -> int:
    """The last number in a person's name; a large one where there is none."""
    found = re.findall(r"\d+", person)
    return int(found[-1]) if found else 10**9


def load_pairs(folder: Path, height: int, cache: Path, val_below: int, most_gb: float) -> tuple[list[Pair], list[Pair]]:
    """Training pairs, and one pair per held-out person. Files that are still being written are left for later."""
    cache.mkdir(parents=True, exist_ok=True)
    train, held_out, used = [], {}, 0
    for path in sorted(folder.glob("*.npz"), key=lambda p: hash_order(p.stem)):
        try:
            pair = load_pair(path, height, cache)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"left out {path.name}: {error}", flush=True)
            continue
        if person_number(pair.person) < val_below:
            held_out.setdefault(pair.person, pair)
            continue
        used += sum(value.numel() for value in vars(pair).values() if isinstance(value, Tensor))
        if used > most_gb * 1e9:
            print(f"{len(train)} pairs fill the {most_gb} GB allowed; the others are left out", flush=True)
            break
        train.append(pair)
    return train, [held_out[person] for person in sorted(held_out)]


def hash_order(name: str) -> int:
    """A fixed shuffle of names, the same in every process."""
    return int.from_bytes(name.encode()[-8:], "big") * 2654435761 % 2**32


def as_batch(pairs: list[Pair]) -> Batch:
    parts = (torch.stack([getattr(p, name) for p in pairs]) for name in ("coarse", "truth", "seen", "photo", "face"))
    return Batch(*(part.float() / 255 for part in parts))


def mirrored(batch: Batch) -> Batch:
    """Everything seen in a mirror: view i becomes view -i, flipped."""
    order = [-i % VIEWS for i in range(VIEWS)]
    views = (getattr(batch, name)[:, order].flip(-1) for name in ("coarse", "truth", "seen"))
    return Batch(*views, batch.photo.flip(-1), batch.faces.flip(-1))


def narrowed(batch: Batch) -> Batch:
    """Only the columns that a network looks at when it restores."""
    columns = person_columns(torch.cat([batch.coarse[:, :, 3], batch.photo[:, None, 3]], 1))
    parts = (getattr(batch, name)[..., columns] for name in ("coarse", "truth", "seen", "photo"))
    return Batch(*parts, batch.faces)


def recoloured(batch: Batch, generator: torch.Generator) -> Batch:
    """Other gains, gamma and now and then other channels, the same for all images; white around them stays white."""
    gains = torch.exp(0.15 * torch.randn(3, generator=generator) + 0.1 * torch.randn(1, generator=generator))
    gamma = float(torch.exp(0.15 * torch.randn(1, generator=generator)))
    order = torch.randperm(3, generator=generator) if torch.rand(1, generator=generator) < 0.1 else torch.arange(3)

    def colours(straight: Tensor) -> Tensor:
        return (straight.index_select(-3, order).clamp(0, 1) ** gamma * gains[:, None, None]).clamp(0, 1)

    def images(rgba: Tensor) -> Tensor:
        rgb, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
        straight = (rgb - (1 - alpha)) / alpha.clamp(min=1 / 255)
        return torch.cat([alpha * colours(straight) + (1 - alpha), alpha], -3)

    faces = torch.where(batch.faces.flatten(1).any(1)[:, None, None, None], colours(batch.faces), 0.0)
    return Batch(images(batch.coarse), images(batch.truth), batch.seen, images(batch.photo), faces)
