"""Stable Video Diffusion's folder of weights, as published for diffusers and as ``hdx weights pull`` leaves it.

::

    model_index.json
    unet/               config.json, diffusion_pytorch_model[.fp16].safetensors, or that split with an index
    vae/                the same
    image_encoder/      config.json, model[.fp16].safetensors (``clip``)
    scheduler/          scheduler_config.json

Everything is checked against the headers of the files before anything is allocated or read. Folders with random weights
of this layout were loaded, in small sizes; the published weights never were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import WeightsError
from .restorer import Config
from .unet import build_unet, checked_config

LATENTS = 4
STEPS, HEIGHT = 25, 960
STEM = "diffusion_pytorch_model"
VARIANTS = ("", ".fp16")
MAX_JSON = 10_000_000
LAYOUT_HINT = "hdx weights pull OWNER/NAME@COMMIT --include '*.json' --include '*.fp16.safetensors'"
_VAE = {"in_channels", "out_channels", "block_out_channels", "layers_per_block", "latent_channels", "scaling_factor"}


def is_svd(folder: Path) -> bool:
    """Whether a folder looks like one."""
    return (folder / "unet" / "config.json").is_file()


def read_settings(folder: Path, identity: str) -> Config:
    """How the weights of a folder are run: with SVD's own noise and per-frame latents, views and not their residual.

    Raises:
        WeightsError: the configuration is missing, damaged or another network's.
    """
    values = read_json(folder / "unet" / "config.json")
    try:
        if (values.get("in_channels"), values.get("out_channels")) != (2 * LATENTS, LATENTS):
            raise ValueError(
                f"{values.get('in_channels')} channels in and {values.get('out_channels')} out, not 8 and 4"
            )
        unet = checked_config(values)
    except ValueError as error:
        raise WeightsError(f"{folder / 'unet' / 'config.json'}: no network of SVD's ({error})") from None
    schedule = folder / "scheduler" / "scheduler_config.json"
    facts = read_json(schedule) if schedule.is_file() else {}
    low, high = facts.get("sigma_min", 0.002), facts.get("sigma_max", 700.0)
    kind = facts.get("prediction_type", "v_prediction")
    numbers = all(type(value) in (int, float) for value in (low, high))
    if kind != "v_prediction" or not (numbers and 1e-6 <= low < high <= 1e5):
        raise WeightsError(f"{schedule}: not SVD's scheduler ({kind}, sigma {low} to {high})")
    return Config(
        unet, "cyclic_mask", identity, residual=False, base_blur=0.0, sigma_start=float(high), steps=STEPS,
        height=HEIGHT, sigma_min=float(low), codec="vae", faces="arcface",
    )  # fmt: skip


def load_unet(folder: Path, config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights of ``unet/``: exactly those of the network, each of its shape.

    Raises:
        WeightsError: a weight is missing, is one too many, has another shape, or is not finite.
    """
    with torch.device("meta"):
        unet = build_unet(config.unet, 2 * LATENTS, LATENTS, from_scratch=False)
    return read_state(folder / "unet", STEM, shapes_of(unet), dtype)


def build_vae(folder: Path) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of ``vae/`` without weights, on the meta device.

    Raises:
        WeightsError: the configuration is missing, damaged or another network's.
    """
    path = folder / "vae" / "config.json"
    values = read_json(path)
    try:
        widths = values["block_out_channels"]
        known = {name: values[name] for name in _VAE if name in values} | {"sample_size": 768}
        counts = [known.get(name, 1) for name in ("in_channels", "out_channels", "latent_channels", "layers_per_block")]
        if not (isinstance(widths, list) and 1 <= len(widths) <= 6):
            raise ValueError(f"block_out_channels is {str(widths)[:60]}")
        if not all(type(each) is int and 32 <= each <= 4096 and not each % 32 for each in widths):
            raise ValueError(f"block_out_channels is {str(widths)[:60]}")
        if not all(type(each) is int and 1 <= each <= 8 for each in counts) or counts[:3] != [3, 3, LATENTS]:
            raise ValueError(f"channels and layers are {str(counts)[:60]}")
        scale = known.get("scaling_factor", 0.18215)
        if type(scale) not in (int, float) or not 1e-3 <= scale <= 1e3:
            raise ValueError(f"scaling_factor is {str(scale)[:60]}")
        blocks = ("DownEncoderBlock2D",) * len(widths)
        with torch.device("meta"):
            return AutoencoderKLTemporalDecoder(down_block_types=blocks, **known)
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: no autoencoder of SVD's ({error})") from None


def load_vae(folder: Path, dtype: torch.dtype = torch.float32) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of ``vae/``. In float16 the published one overflows; bfloat16 was not tried.

    Raises:
        WeightsError: as for ``load_unet``.
    """
    vae = build_vae(folder)
    vae.load_state_dict(read_state(folder / "vae", STEM, shapes_of(vae), dtype), assign=True)
    return vae


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by its name."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def weight_files(folder: Path, stem: str, half: bool = False) -> list[Path]:
    """The safetensors files that hold a part's weights; of two precisions the one that is ``half`` or not, if there.

    Raises:
        WeightsError: there are none, or an index names a file that is not there.
    """
    for variant in VARIANTS[::-1] if half else VARIANTS:
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
            bad = [name for name in names if "/" in name or "\\" in name or not (folder / name).is_file()]
            if bad or not names:
                raise WeightsError(
                    f"{index}: the file {bad[0][:100]!r} is not there" if bad else f"{index}: names no file"
                )
            return [folder / name for name in names]
    raise WeightsError(f"{folder / stem}.safetensors: not there", hint=LAYOUT_HINT)


def read_state(
    folder: Path,
    stem: str,
    expected: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    optional: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The weights of a part in that precision, after its files were found to hold what is expected and nothing else.

    ``optional`` names may be in the files, and are left out.

    Raises:
        WeightsError: they do not, or a weight is not finite.
    """
    files = weight_files(folder, stem, half=dtype.itemsize == 2)
    found = {name: shape for name, shape in header_shapes(files).items() if name not in optional}
    if wrong := difference(found, expected):
        raise WeightsError(f"{files[0]}: {wrong}")
    state = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in found.keys() & set(file.keys()):
                state[name] = file.get_tensor(name).to(dtype)
                if not state[name].isfinite().all():
                    raise WeightsError(f"{path}: {name[:100]} is not finite in {str(dtype).removeprefix('torch.')}")
    return state


def header_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the headers of safetensors files.

    Raises:
        WeightsError: a file is damaged, or two hold the same name.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                here = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{path}: not a whole safetensors file ({reason})", code="E_WEIGHTS_FORMAT") from None
        if twice := sorted(here.keys() & found.keys()):
            raise WeightsError(f"{path}: holds {twice[0][:100]}, which another file holds too")
        found |= here
    return found


def difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """How names and shapes differ from those that are expected, in one line; None where they do not."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [name for name in expected if name in found and found[name] != expected[name]]
    if missing:
        return f"{len(missing)} weights are missing, the first {missing[0]}"
    if extra:
        return f"{len(extra)} weights are not this network's, the first {extra[0][:100]}"
    if other:
        name = other[0]
        return f"{len(other)} weights have another shape, the first {name}: {found[name]}, not {expected[name]}"
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a folder of weights.

    Raises:
        WeightsError: the file is missing, too long, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("far too long")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: {reason}", hint=LAYOUT_HINT) from None
