"""Weights on disk: a safetensors file of half precision with the configuration in its header."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..errors import WeightsError
from ..weights import LOCK, REINSTALL, read_weights
from .identity import FaceEmbedder
from .latents import Codec
from .restorer import Config, HumanFixer

FORMAT = "hdx-humanfixer-1"
WEIGHTS = Path(__file__).with_name("humanfixer.safetensors")


def save_weights(path: Path, model: HumanFixer, notes: dict[str, str] | None = None) -> None:
    """Write weights as float16 (measured statistics as float32), replacing the file only when all is written.

    Args:
        path: the file.
        model: whose weights.
        notes: anything else that shall stand in the header, for example how it was trained.
    """
    kept = {name for name, _ in model.named_buffers()}
    tensors = {
        name: value.detach().to("cpu", value.dtype if name in kept else torch.float16).contiguous()
        for name, value in model.state_dict().items()
    }
    header = {"format": FORMAT, "config": json.dumps(asdict(model.config))} | (notes or {})
    beside = path.with_name(path.name + ".part")
    save_file(tensors, beside, header)
    os.replace(beside, path)


def read_config(text: str) -> Config:
    """The configuration of a header, whose JSON knows lists only where there were tuples.

    Raises:
        KeyError, ValueError, TypeError: it is none.
    """
    values = json.loads(text)
    values["unet"] = {name: tuple(v) if isinstance(v, list) else v for name, v in values["unet"].items()}
    return Config(**{field.name: values[field.name] for field in fields(Config)} | {"kept": tuple(values["kept"])})


def load_weights(
    path: Path = WEIGHTS, lock: Path | None = LOCK, codec: Codec | None = None, embedder: FaceEmbedder | None = None
) -> HumanFixer:
    """A network ready to restore, on the CPU in float32.

    Args:
        path: file that ``save_weights`` wrote; lock: as for ``weights.read_weights``.
        codec, embedder: if the weights were trained with other than the bundled ones.

    Raises:
        WeightsError: the file is missing, is not what the lock says, or holds no such network.
    """
    content, header = read_weights(path, lock)
    if header.get("format") != FORMAT:
        raise WeightsError(f"{path}: format {header.get('format')}, not {FORMAT}", hint=REINSTALL)
    try:
        tensors = {name: value.float() for name, value in load(content).items()}
        model = HumanFixer(read_config(header["config"]), codec, embedder)
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: weights and configuration do not fit ({reason})", hint=REINSTALL) from None
    return model.eval().requires_grad_(False)
