"""The backbones behind one contract: photo -> coarse avatar, coarse avatar -> refined avatar, and their files.

What leaves a backbone is an ``Avatar``: canonical Gaussians with skinning weights. So restoring, moving and exporting
know of none of them. A network's weights lie beside the avatar (``backbone.safetensors``, ``backbone.json``), so that
refining goes on from them. A further backbone is a module with ``Profile``, ``PROFILES``, ``PLANS``, ``empty`` and
``fit_coarse`` as ``gaussian_avatar`` has them, and a line in ``NETWORKS``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..bodies.base import BodyFit, BodyModel
from ..errors import InputRejected, UsageError
from ..observation import Observation
from ..progress import Progress, Silent
from . import explicit
from .avatar_file import read_avatar, write_avatar
from .base import Avatar
from .neural import Network, NeuralAvatar, Plan, fitted
from .refine import refine

EXPLICIT = "explicit"
NETWORKS = {"gaussian-avatar": "gaussian_avatar", "animatable-gaussians": "animatable_gaussians"}
NAMES = (EXPLICIT, *NETWORKS)
FORMAT, MAJOR = "hdx-backbone", 1
TENSORS, DESCRIPTION = "backbone.safetensors", "backbone.json"
MOST = 4096  # of any size in a profile, and 5 M Gaussians: more is a damaged file
MOST_GAUSSIANS = 5_000_000
MOST_DESCRIPTION = 1_000_000  # bytes of the description, and of a header of tensors


def fit_coarse(
    name: str,
    observation: Observation,
    fit: BodyFit,
    model: BodyModel,
    settings: explicit.Settings = explicit.Settings(),
    progress: Progress = Silent(),
    seed: int = 0,
    profile: str = "cpu",
) -> Avatar:
    """The coarse avatar of one photo by a backbone of ``NAMES``.

    Args:
        settings: of the explicit avatar, which lends the networks its surface and the colours of the unseen side.
        profile: ``cpu`` or ``paper``; the explicit backbone has but one.

    Raises:
        UsageError: there is no such backbone or profile.
    """
    if name == EXPLICIT:
        return explicit.fit_coarse(observation, fit, model, settings, progress, seed)
    module = _module(name)
    if profile not in module.PROFILES:
        raise UsageError(f"{profile}: {name} has the profiles {', '.join(module.PROFILES)}")
    return module.fit_coarse(
        observation, fit, model, settings, progress, seed, module.PROFILES[profile], module.PLANS[profile]
    )


def refiner(avatar: Avatar) -> Callable[..., Avatar]:
    """What fits this avatar to restored views: the ``fit`` of ``refine.refine_in_rounds``."""
    return fitted if isinstance(avatar, NeuralAvatar) else refine


def name_of(avatar: Avatar) -> str:
    """The backbone that made an avatar."""
    if not isinstance(avatar, NeuralAvatar):
        return EXPLICIT
    module = type(avatar.network).__module__.rsplit(".", 1)[-1]
    return next(name for name in NETWORKS if NETWORKS[name] == module)


def write(folder: Path, avatar: Avatar) -> Path:
    """Write the avatar file, and beside it the network of an avatar that has one; returns the avatar's path."""
    path = write_avatar(folder, avatar)
    if not isinstance(avatar, NeuralAvatar):
        return path
    from safetensors.torch import save

    network = avatar.network
    content = save({key: value.detach().contiguous() for key, value in network.state_dict().items()})
    (folder / TENSORS).write_bytes(content)
    rows, columns = network.map_size
    description = {
        "format": FORMAT,
        "version": f"{MAJOR}.0",
        "backbone": name_of(avatar),
        "profile": asdict(network.profile),
        "plan": asdict(avatar.plan),
        "gaussians": len(network.texels),
        "rows": rows,
        "columns": columns,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return path


def read(folder: Path) -> Avatar:
    """The avatar in a folder, with its network where it has one.

    Raises:
        InputRejected: a file is missing, damaged, of a newer version, or network and avatar do not belong together.
    """
    avatar = read_avatar(folder)
    if not (folder / DESCRIPTION).exists():
        return avatar
    try:
        network, plan = _network(folder, len(avatar.canonical))
    except FileNotFoundError as error:
        raise InputRejected(f"{error.filename}: no such file", code="E_MISSING") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputRejected(
            f"{folder / DESCRIPTION}: not the network of this avatar ({reason})",
            hint="run `hdx fit-coarse` again",
            code="E_DAMAGED",
        ) from None
    kept = {field.name: getattr(avatar, field.name) for field in fields(Avatar)}
    return NeuralAvatar(**kept, network=network, plan=plan)


def _network(folder: Path, gaussians: int) -> tuple[Network, Plan]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    described = json.loads(_content(folder / DESCRIPTION, MOST_DESCRIPTION))
    if described["format"] != FORMAT or int(described["version"].split(".")[0]) > MAJOR:
        raise ValueError(f"format {described['format']} {described['version']}; this hdx reads {FORMAT} {MAJOR}.x")
    module = _module(described["backbone"])
    profile = module.Profile(**{name: _bounded(value) for name, value in described["profile"].items()})
    count, rows, columns = (int(described[name]) for name in ("gaussians", "rows", "columns"))
    if count != gaussians or not 0 < count <= MOST_GAUSSIANS or not (0 < rows <= MOST and 0 < columns <= MOST):
        raise ValueError(f"{count} Gaussians on maps of {rows} x {columns}; the avatar has {gaussians}")
    network = module.empty(profile, count, rows, columns)
    # the network has sizes but no memory yet: a file that does not hold it is refused unread
    needed = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    content = _content(folder / TENSORS, needed + MOST_DESCRIPTION)
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise ValueError(f"{TENSORS} does not match its sha256: damaged or edited")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{TENSORS}: {error}") from None
    for name, wanted in network.state_dict().items():
        if tensors[name].dtype != wanted.dtype or (wanted.is_floating_point() and not tensors[name].isfinite().all()):
            raise ValueError(f"{name}: not finite {wanted.dtype}")
    network.load_state_dict(tensors, assign=True)
    texels = network.texels
    if int(texels.min()) < 0 or int(texels.max()) >= network.maps * rows * columns:
        raise ValueError("texels outside of the maps")
    return network.requires_grad_(True), Plan(**described["plan"])


def _content(path: Path, most: int) -> bytes:
    """All of a file of at most that many bytes."""
    if path.stat().st_size > most:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {most} at most")
    return path.read_bytes()


def _bounded(value: Any) -> Any:
    """A value of a profile: a number, a truth value, or a short tuple of numbers."""
    if isinstance(value, list):
        if not 3 <= len(value) <= 9:
            raise ValueError("a profile with too many or too few channels")
        return tuple(_bounded(item) for item in value)
    if not isinstance(value, (int, float)) or not 0 <= value <= MOST:
        raise ValueError(f"{value!r} in a profile")
    return value


def _module(name: str) -> ModuleType:
    if name not in NETWORKS:
        raise UsageError(f"{name}: choose one of {', '.join(NAMES)}")
    return import_module(f".{NETWORKS[name]}", __package__)
