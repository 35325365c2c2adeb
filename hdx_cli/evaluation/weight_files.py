"""Tensors out of folders of safetensors that the user names: only those asked for, of the shapes asked for."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import WeightsError

MOST_FILES = 200


def weights_folder(text: str) -> Path:
    """The folder of weights named on a command line: a folder, or a name of ``hdx weights list``, which is verified.

    Raises:
        WeightsError: there is neither, or the weights are not as locked.
    """
    from .. import weights_store as store

    if (folder := Path(text).expanduser()).is_dir():
        return folder
    stored = store.find(store.cache_folder(), text)[0]
    if wrong := store.problems(stored):
        raise store.damage(stored, wrong)
    return stored.folder


def read_tensors(
    folder: Path, wanted: dict[str, tuple[int, ...] | None], missing_ok: bool = False
) -> dict[str, Float[Tensor, "..."]]:
    """Tensors by name from all safetensors under a folder, as float32; nothing else in the files is read.

    Args:
        wanted: name to shape; None takes any shape of up to a million numbers.
        missing_ok: give nothing at all where not all are there, rather than fail.

    Raises:
        WeightsError: a file is damaged, or a tensor is missing, of another shape, or not finite.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for path in sorted(folder.rglob("*.safetensors"))[:MOST_FILES]:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in wanted.keys() & set(file.keys()):
                    shape = tuple(file.get_slice(name).get_shape())
                    most = 1_000_000
                    if shape != wanted[name] if wanted[name] is not None else torch.Size(shape).numel() > most:
                        raise WeightsError(f"{path}: {name} has shape {list(shape)}", code="E_WEIGHTS_LAYOUT")
                    found[name] = file.get_tensor(name).float()
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(f"{path}: not a readable safetensors file ({reason})") from None
    missing = sorted(wanted.keys() - found.keys())
    if missing and missing_ok:
        return {}
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"{folder}: no tensor {missing[0]}{more} in its safetensors", code="E_WEIGHTS_LAYOUT")
    if bad := next((name for name, tensor in found.items() if not tensor.isfinite().all()), None):
        raise WeightsError(f"{folder}: {bad} is not finite")
    return found
