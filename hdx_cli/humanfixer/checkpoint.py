"""Weights on disk: a safetensors file of half precision with the configuration in its header, or a folder of SVD's."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from ..errors import UsageError, WeightsError
from ..weights import LOCK, REINSTALL, read_weights
from . import svd
from .arcface import ArcFace
from .attention import IDENTITIES, VARIANTS
from .clip import ClipImages
from .identity import FACES
from .latents import BlockDct, Codec
from .restorer import Config, HumanFixer, Restorer
from .unet import checked_config
from .vae import FRAMES_AT_ONCE, TemporalVae

FORMAT = "hdx-humanfixer-1"
NAME = "humanfixer.safetensors"
WEIGHTS = Path(__file__).with_name(NAME)


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

    What a file older than a setting does not say is the setting's default.

    Raises:
        KeyError, ValueError, TypeError: it is none.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or not isinstance(values.get("unet"), dict):
        raise ValueError("no settings")
    later = {"sigma_min", "codec", "faces"} - values.keys()
    known = {field.name: values[field.name] for field in fields(Config) if field.name not in later}
    config = Config(**known | {"unet": checked_config(values["unet"]), "kept": tuple(values["kept"])})
    numbers = (config.base_blur, config.sigma_start, config.sigma_min, config.steps, config.height, config.face_tokens)
    if not (
        config.variant in VARIANTS and config.identity in IDENTITIES and config.codec in ("dct", "vae")
        and config.faces in FACES and all(type(value) in (int, float) for value in numbers)
        and len(config.kept) == 4 and all(type(count) is int and 1 <= count <= 8 for count in config.kept)
        and 1e-6 <= config.sigma_min and 1e-6 <= config.sigma_start <= 1e5 and 0 <= config.base_blur <= 100
        and 1 <= config.steps <= 1000 and 16 <= config.height <= 4096 and 1 <= config.face_tokens <= 64
        and all(type(value) is int for value in (config.steps, config.height, config.face_tokens))
    ):  # fmt: skip
        raise ValueError("impossible settings")
    return config


def load_weights(
    path: Path = WEIGHTS,
    lock: Path | None = LOCK,
    codec: Codec | None = None,
    dtype: torch.dtype = torch.float32,
) -> HumanFixer:
    """A network ready to restore, on the CPU.

    Args:
        path: file that ``save_weights`` wrote; lock: as for ``weights.read_weights``.
        codec: if the weights were trained with another than the bundled one.
        dtype: of the UNet; everything else is float32.

    Raises:
        WeightsError: the file is missing, is not what the lock says, or holds no such network.
    """
    hint = REINSTALL if lock == LOCK else None
    try:
        if lock is None:
            with safe_open(path, "pt") as file:
                header, content = file.metadata() or {}, None
        else:
            content, header = read_weights(path, lock)
        if header.get("format") != FORMAT:
            raise WeightsError(f"{path}: format {header.get('format')}, not {FORMAT}", hint=hint)
        model = empty(read_config(header["config"]), codec)
        if wrong := None if lock else svd.difference(svd.header_shapes([path]), svd.shapes_of(model)):
            raise WeightsError(f"{path}: weights and configuration do not fit ({wrong})", hint=hint)
        if content is None:
            with safe_open(path, "pt") as file:
                tensors = {name: _ready(name, file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118
        else:
            tensors = {name: _ready(name, value, dtype) for name, value in load(content).items()}
        model.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f"{path}: weights and configuration do not fit ({reason})", hint=hint) from None
    return model.eval().requires_grad_(False)


def _ready(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.isfinite().all():
        raise ValueError(f"{name[:100]} is not finite")
    return value.to(dtype if name.startswith("unet.") else torch.float32)


def empty(config: Config, codec: Codec | None = None) -> HumanFixer:
    """A network whose weights are on the meta device: of full structure, without memory. The codec is a real one."""
    codec = codec or BlockDct(config.kept)
    with torch.device("meta"):
        model = HumanFixer(config, codec)
    for part in (model.unet, model.identity):
        part.to("meta")  # a few of diffusers' parameters ignore the device they are made under
    return model


@dataclass(frozen=True)
class Plan:
    """What a folder of weights is, read off its configuration and headers only.

    Attributes:
        kind: "hdx", HumanFixer's own file, or "svd", Stable Video Diffusion as published.
        folder: where it is; file: HumanFixer's own file in it, None for "svd".
        config: of the network.
        anonymous: whether the network shall get no identity, though it knows some.
        notes: what a person should know before using it.
    """

    kind: str
    folder: Path
    file: Path | None
    config: Config
    anonymous: bool = False
    notes: tuple[str, ...] = ()

    @property
    def image_encoder(self) -> Path | None:
        """The folder of the encoder that the identity needs, if it needs one."""
        return self.folder / "image_encoder" if "clip" in self.config.identity and not self.anonymous else None

    @property
    def wants_arcface(self) -> bool:
        """Whether the identity needs a pack of InsightFace's."""
        return self.config.faces == "arcface" and "face" in self.config.identity and not self.anonymous

    def on_meta(self) -> HumanFixer:
        """The network and its codec, of full structure and without memory."""
        vae = self.config.codec == "vae"
        codec = TemporalVae(svd.build_vae(self.folder).to("meta")) if vae else BlockDct(self.config.kept).to("meta")
        return empty(self.config, codec)


def read_plan(place: Path, identity: str | None = None) -> Plan:
    """What a folder (or HumanFixer's own file) is, and whether its weights are what its configuration says.

    Args:
        place: the folder; identity: of ``attention.IDENTITIES``, None for what the weights know.

    Raises:
        WeightsError: it holds no weights that HumanFixer can load.
        UsageError: an identity that the weights do not know.
    """
    file = place if place.suffix == ".safetensors" else place / NAME
    if file.is_file():
        try:
            with safe_open(file, "pt") as opened:
                header = opened.metadata() or {}
            config = read_config(header["config"]) if header.get("format") == FORMAT else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise WeightsError(f"{file}: not HumanFixer's weights ({reason})") from None
        if config is None:
            raise WeightsError(f"{file}: format {header.get('format')}, not {FORMAT}")
        if identity not in (None, "none", config.identity):
            raise UsageError(f"--identity {identity}: these weights know {config.identity} or none", code="E_IDENTITY")
        plan = Plan("hdx", file.parent, file, config, anonymous=identity == "none")
        if wrong := svd.difference(svd.header_shapes([file]), svd.shapes_of(plan.on_meta())):
            raise WeightsError(f"{file}: weights and configuration do not fit ({wrong})")
        return plan
    if not svd.is_svd(place):
        raise WeightsError(f"{place}: neither {NAME} nor unet/config.json in it", hint=svd.LAYOUT_HINT)
    if identity == "face":
        raise UsageError(
            "--identity face: SVD never saw face tokens alone; use clip+face, clip or none",
            code="E_IDENTITY",
        )
    chosen = identity or ("clip" if (place / "image_encoder" / "config.json").is_file() else "none")
    config = svd.read_settings(place, chosen)
    plan = Plan("svd", place, None, config, notes=notes_of(chosen))
    with torch.device("meta"):
        unet = svd.build_unet(config.unet, 2 * svd.LATENTS, svd.LATENTS, from_scratch=False)
    for folder, module in ((place / "unet", unet), (place / "vae", svd.build_vae(place))):
        files = svd.weight_files(folder, svd.STEM)
        if wrong := svd.difference(svd.header_shapes(files), svd.shapes_of(module)):
            raise WeightsError(f"{files[0]}: {wrong}")
    return plan


def notes_of(identity: str) -> tuple[str, ...]:
    """What to know of SVD's weights as published."""
    notes = ("these weights were not trained to restore avatars: they make a film that is guided by the coarse views",)
    return (*notes, "the face tokens have no effect before they are trained") if "face" in identity else notes


def load_restorer(
    place: Path,
    identity: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    offload: bool = False,
    face_pack: Path | None = None,
    frames_at_once: int | None = FRAMES_AT_ONCE,
) -> Restorer:
    """A restorer from a folder of weights (or HumanFixer's own file) that nobody vouches for but its headers.

    Weights pulled or imported are verified by ``weights_store.require``, whose folder is what this takes. SVD-sized
    weights, CUDA and half precision on it never ran.

    Args:
        place, identity: as for ``read_plan``.
        device: where to compute.
        dtype: of the UNet; None is float32 on a CPU and float16 elsewhere. The autoencoder is always float32.
        offload: keep weights in main memory, and on the device only the part that computes.
        face_pack: of InsightFace's models, for weights that know ArcFace; see ``arcface.require_accepted``.
        frames_at_once: that SVD's autoencoder decodes in one pass, None for all; see ``vae.TemporalVae``.

    Raises:
        WeightsError, UsageError: as for ``read_plan``; a weight is not finite; an encoder of the identity is missing.
    """
    plan = read_plan(place, identity)
    if plan.wants_arcface and face_pack is None:
        raise WeightsError(
            f"{place}: its face tokens are made of ArcFace's embeddings, and there is no pack of models",
            hint=f"add --face-pack ROOT/models/buffalo_l, or --identity {'clip' if plan.kind == 'svd' else 'none'}",
        )
    encode_face = ArcFace(face_pack) if plan.wants_arcface else None
    encode_image = ClipImages(plan.image_encoder) if plan.image_encoder else None
    if encode_image and encode_image.dimension != plan.config.unet["cross_attention_dim"]:
        raise WeightsError(f"{plan.image_encoder}: {encode_image.dimension} numbers are not what the network takes")
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    codec = TemporalVae(svd.load_vae(plan.folder), frames_at_once) if plan.config.codec == "vae" else None
    if plan.file is not None:
        model = load_weights(plan.file, None, codec, dtype)
    else:
        model = HumanFixer(plan.config, codec, svd.load_unet(plan.folder, plan.config, dtype))
    model.eval().requires_grad_(False)
    encoders = {"encode_face": encode_face, "encode_image": encode_image, "anonymous": plan.anonymous}
    if offload:
        return Restorer(model, device, **encoders)
    for module in (model, model.codec.network, *([encode_image.network] if encode_image else [])):
        module.to(device)
    return Restorer(model, **encoders)
