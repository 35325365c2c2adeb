"""The network with all it is conditioned on, and the restoration of 18 views with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..progress import Progress, Silent
from .attention import VIEWS, install_attention
from .diffusion import karras_sigmas, noise_condition, sample, scale_input, start_ceiling
from .identity import Identity
from .latents import BlockDct, Codec
from .offload import lent
from .unet import SMALL, TIME_IDS, add_condition_channels, build_unet
from .vae import with_certain_inside

# Besides the latents of the coarse views: what the photo saw, the coarse alpha, 1 where the frame holds the photo, and
# the sine and cosine of the view's azimuth.
CONDITION_CHANNELS = 5
MARGIN = 1 / 12  # of an image's height, beside the person
COLUMNS = 16
NEAR_ROWS = 2.5  # how far round the coarse person the network's word counts, rows of its images
DECISION = 2.0  # how much steeper edges become than the network's
BLUR_ROWS = 192  # images of this many rows are what ``Config.base_blur`` counts in


@dataclass(frozen=True)
class Config:
    """Everything that, with the weights, determines a restorer.

    Attributes:
        unet: configuration of the UNet (``unet.SIZES``).
        variant, identity: of the attention (``attention.VARIANTS``, ``attention.IDENTITIES``).
        face_tokens: how many tokens an identity has.
        kept: frequencies kept per plane by the bundled codec.
        residual: predict the difference from the coarse views instead of the views.
        base_blur: standard deviation of the blur of the views that residuals are added to, pixels at 192 rows.
        sigma_start, steps: what the weights were trained to be run with.
        height: rows of the images the weights were trained on last.
        sigma_min: the last sigma of several steps.
        codec: "dct", the bundled one, or "vae", Stable Video Diffusion's.
        faces: what faces are given as (``identity.FACES``).
    """

    unet: dict = field(default_factory=lambda: dict(SMALL))
    variant: str = "cyclic_mask"
    identity: str = "face"
    face_tokens: int = 4
    kept: tuple[int, int, int, int] = (8, 4, 4, 6)
    residual: bool = True
    base_blur: float = 1.0
    sigma_start: float = 80.0
    steps: int = 1
    height: int = 192
    sigma_min: float = 0.02
    codec: str = "dct"
    faces: str = "crop"


@dataclass(frozen=True)
class Conditions:
    """What a network knows when it restores the frames.

    Attributes:
        base: latents that the prediction is added to.
        start: normalised x0 that a direct start begins from.
        channels: input channels beside the noisy latents: conditions in latents, and ``CONDITION_CHANNELS`` more.
        context: tokens of the cross-attention.
        seen: share of the pixels under each latent that the photo saw, in [0, 1].
    """

    base: Float[Tensor, "B L C h w"]
    start: Float[Tensor, "B L C h w"]
    channels: Float[Tensor, "B L K h w"]
    context: Float[Tensor, "B T D"]
    seen: Float[Tensor, "B L 1 h w"]

    def frames(self, index: Tensor) -> Conditions:
        """Only the frames of that index, for training without temporal layers."""
        parts = (part[:, index] for part in (self.base, self.start, self.channels))
        return Conditions(*parts, self.context, self.seen[:, index])


def close_cycle(frames: Float[Tensor, "B V *frame"], variant: str) -> Float[Tensor, "B L *frame"]:
    """18 views to the frames a network sees: view 0 once more at the end, save in the variant "noncyclic"."""
    return frames if variant == "noncyclic" else torch.cat([frames, frames[:, :1]], 1)


def open_cycle(frames: Float[Tensor, "B L *frame"]) -> Float[Tensor, "B V *frame"]:
    """The inverse: frames to 18 views; the second copy of view 0 is dropped."""
    return frames[:, :VIEWS]


def gaussian_blur(images: Float[Tensor, "N C H W"], sigma_px: float) -> Float[Tensor, "N C H W"]:
    """Images blurred by that standard deviation in pixels; edges are continued."""
    if sigma_px <= 0:
        return images
    rows, columns = (_blur_matrix(side, sigma_px).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.T


def _blur_matrix(side: int, sigma_px: float) -> Float[Tensor, "N N"]:
    """The blur of a line of ``side`` pixels; as a product with it the blur of small images is fastest."""
    radius = math.ceil(3 * sigma_px)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    to = torch.arange(side)[:, None].expand(-1, len(offsets))
    matrix = torch.zeros(side, side)
    return matrix.index_put_((to, (to + offsets).clamp(0, side - 1)), (weights / weights.sum()).expand_as(to), True)


def person_columns(alpha: Float[Tensor, "*N H W"]) -> slice:
    """The columns that a network need look at: all with somebody in them, and a margin for what coarse views lack.

    Most of an orbit's width is white. The width is a multiple of ``COLUMNS`` unless that is all there is.
    """
    height, width = alpha.shape[-2:]
    covered = (alpha > 0.02).reshape(-1, width).any(0).nonzero()[:, 0]
    if not len(covered):
        return slice(0, width)
    margin = round(MARGIN * height)
    first, last = int(covered[0]) - margin, int(covered[-1]) + 1 + margin
    wide = min(width, math.ceil((min(last, width) - max(first, 0)) / COLUMNS) * COLUMNS)
    first = min(max(first, 0), width - wide)
    return slice(first, first + wide)


class HumanFixer(nn.Module):
    """Predicts v of the normalised latents x0 = (latents - base) / residual_std of orbit frames.

    ``latent_std`` and ``residual_std`` [C] are measured on training data (``measure``) and travel with the weights.
    """

    def __init__(
        self,
        config: Config,
        codec: Codec | None = None,
        pretrained: dict[str, Tensor] | None = None,
    ):
        """A network with random weights.

        Args:
            config: what to build.
            codec: other than the bundled one; it does not belong to the weights.
            pretrained: weights of a UNet of that configuration, for example Stable Video Diffusion's, to begin as. They
                are taken over, not copied.
        """
        super().__init__()
        self.config = config
        self.codec = BlockDct(config.kept) if codec is None else codec
        channels = self.codec.channels
        if pretrained is not None:
            with torch.device("meta"):  # no memory and no time for random weights
                self.unet = build_unet(config.unet, 2 * channels, channels, from_scratch=False)
            self.unet.load_state_dict(pretrained, assign=True)
            add_condition_channels(self.unet, CONDITION_CHANNELS)
        else:
            self.unet = build_unet(config.unet, 2 * channels + CONDITION_CHANNELS, channels)
            # blind to noise at first, of which there is nothing to learn in one step from a direct start
            nn.init.zeros_(self.unet.conv_in.weight[:, :channels])
        install_attention(self.unet, config.variant, config.identity)
        width = config.unet["cross_attention_dim"]
        self.identity = Identity(config.identity, width, config.face_tokens, config.faces)
        self.register_buffer("latent_std", torch.ones(channels))
        self.register_buffer("residual_std", torch.ones(channels))

    def encode(self, images: Float[Tensor, "B L 4 H W"]) -> Float[Tensor, "B L C h w"]:
        """Latents of the codec, not normalised."""
        return self.codec.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])

    def decode(self, latents: Float[Tensor, "B L C h w"], height: int, width: int) -> Float[Tensor, "B L 4 H W"]:
        """Images of latents, not clamped."""
        return torch.stack([self.codec.decode(frames, height, width) for frames in latents])

    def images(self, latents: Float[Tensor, "B L C h w"], height: int, width: int) -> Float[Tensor, "B L 4 H W"]:
        """Images of latents as they can be: alpha in [0, 1], and nothing over white darker than its alpha allows."""
        decoded = self.decode(latents, height, width)
        alpha = decoded[:, :, 3:].clamp(0, 1)
        return torch.cat([torch.maximum(decoded[:, :, :3], 1 - alpha).clamp(max=1), alpha], 2)

    def normalise(self, latents: Float[Tensor, "B L C h w"], base: Float[Tensor, "B L C h w"]) -> Tensor:
        """x0 of latents."""
        return (latents - base) / self.residual_std.to(latents.device)[:, None, None]

    def latents(self, x0: Float[Tensor, "B L C h w"], base: Float[Tensor, "B L C h w"]) -> Tensor:
        """Latents of x0: the inverse of ``normalise``."""
        return base + self.residual_std.to(x0.device)[:, None, None] * x0

    def conditions(
        self,
        coarse: Float[Tensor, "B 18 4 H W"],
        seen: Float[Tensor, "B 18 H W"],
        photo: Float[Tensor, "B 4 H W"],
        faces: Float[Tensor, "B 3 64 64"] | Float[Tensor, "B E"],
        inject: Bool[Tensor, "B"],
        clip: Float[Tensor, "B 1 D"] | None = None,
    ) -> Conditions:
        """Conditions of 18 coarse views; ``inject`` puts the photo in the place of view 0, in both its frames.

        Args:
            coarse: over white, with alpha. View i is seen from an azimuth of 20 i degrees.
            seen: 1 where a coarse pixel shows what the photo saw.
            photo: over white, with alpha, in the window of view 0.
            faces: crops in [0, 1] or embeddings, as ``Config.faces`` says; zeros for none.
            inject: per person.
            clip: CLIP's image token, for the modes of identity that have one.
        """
        batch, height = len(coarse), coarse.shape[-2]
        clean = torch.zeros(batch, VIEWS, device=coarse.device)
        clean[:, 0] = inject.float()
        views = torch.cat([torch.where(inject[:, None, None, None], photo, coarse[:, 0])[:, None], coarse[:, 1:]], 1)
        sharp = self.encode(views)
        base = torch.zeros_like(sharp)
        if self.config.residual:
            blurred = gaussian_blur(views.flatten(0, 1), self.config.base_blur * height / BLUR_ROWS)
            # the photo itself is not blurred: it is no estimate
            base = torch.where(clean[:, :, None, None, None] > 0, sharp, self.encode(blurred.unflatten(0, (batch, -1))))
        start = torch.zeros_like(sharp) if self.config.residual else self.normalise(sharp, base)

        azimuth = torch.arange(VIEWS, device=coarse.device) * (2 * math.pi / VIEWS)
        small = self._shrink(torch.stack([seen, views[:, :, 3]], 2))
        size = small.shape[-2:]
        flags = [clean, azimuth.sin().expand(batch, -1), azimuth.cos().expand(batch, -1)]
        extra = torch.cat([small, torch.stack(flags, 2)[..., None, None].expand(-1, -1, -1, *size)], 2)
        channels = torch.cat([self.codec.condition_gain * sharp / self.latent_std.to(sharp)[:, None, None], extra], 2)
        parts = [close_cycle(part, self.config.variant) for part in (base, start, channels, small[:, :, :1])]
        return Conditions(*parts[:3], self.identity(faces, clip), parts[3])

    def _shrink(self, planes: Float[Tensor, "B L P H W"]) -> Float[Tensor, "B L P h w"]:
        factor = self.codec.factor
        height, width = planes.shape[-2:]
        padded = functional.pad(planes.flatten(0, 1), (0, -width % factor, 0, -height % factor))
        return functional.avg_pool2d(padded, factor).unflatten(0, planes.shape[:2])

    def forward(
        self, z: Float[Tensor, "B L C h w"], sigma: Float[Tensor, "B"], conditions: Conditions
    ) -> Float[Tensor, "B L C h w"]:
        """v of noisy x0 at one sigma per person."""
        seen_by_network = torch.cat([scale_input(z, sigma[:, None, None, None, None]), conditions.channels], 2)
        ids = torch.tensor(TIME_IDS, device=z.device).expand(len(z), -1)
        # the network may compute in half precision; the samples themselves never do
        dtype = self.unet.dtype
        seen_by_network, context = seen_by_network.to(dtype), conditions.context.to(dtype)
        return self.unet(seen_by_network, noise_condition(sigma), context, ids, return_dict=False)[0].to(z.dtype)

    def restore(
        self,
        conditions: Conditions,
        sigmas: Float[Tensor, "steps_and_one"],
        generator: torch.Generator,
        sigma_seen: float | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, "B L C h w"]:
        """Latents of restored frames by a direct start at ``sigmas[0]``; both copies of view 0 get the same noise."""
        progress = progress or Silent()
        shape = (len(conditions.start), VIEWS, *conditions.start.shape[2:])
        noise = torch.randn(shape, generator=generator).to(conditions.start)
        noise = close_cycle(noise, self.config.variant)
        ceiling = start_ceiling(conditions.seen, float(sigmas[0]), sigma_seen)
        x0 = sample(
            lambda z, sigma: self(z, sigma.expand(len(z)), conditions),
            conditions.start, noise, sigmas.to(noise), ceiling, progress.advance,
        )  # fmt: skip
        return self.latents(x0, conditions.base)

    def restored(
        self,
        coarse: Float[Tensor, "B 18 4 H W"],
        seen: Float[Tensor, "B 18 H W"],
        photo: Float[Tensor, "B 4 H W"],
        faces: Float[Tensor, "B 3 64 64"] | Float[Tensor, "B E"],
        sigmas: Float[Tensor, "steps_and_one"],
        generator: torch.Generator,
        sigma_seen: float | None = None,
        progress: Progress | None = None,
        clip: Float[Tensor, "B 1 D"] | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, "B L 4 H W"]:
        """Images of all restored frames, given what ``conditions`` takes; the photo always replaces view 0.

        With a ``device``, where all the tensors must be, the codec and the network are moved there only for their part
        of the work, one at a time.
        """
        height, width = coarse.shape[-2:]
        columns = person_columns(torch.cat([coarse[:, :, 3], photo[:, None, 3]], 1))
        inject = torch.ones(len(coarse), dtype=torch.bool, device=coarse.device)
        little = coarse[..., columns]
        with lent(device, self.codec.network, self.identity):
            conditions = self.conditions(little, seen[..., columns], photo[..., columns], faces, inject, clip)
        with lent(device, self.unet):
            latents = self.restore(conditions, sigmas, generator, sigma_seen, progress)
        with lent(device, self.codec.network):
            narrow = self.images(latents, height, columns.stop - columns.start)
        if not self.codec.codes_alpha:
            narrow = with_certain_inside(narrow, close_cycle(little[:, :, 3:], self.config.variant))
        white = narrow.new_tensor([1.0, 1.0, 1.0, 0.0])[:, None, None]
        images = white.expand(*narrow.shape[:2], 4, height, width).clone()
        images[..., columns] = narrow
        return images

    @torch.no_grad()
    def measure(self, coarse: Float[Tensor, "N 18 4 H W"], truth: Float[Tensor, "N 18 4 H W"]) -> None:
        """Set ``latent_std`` and ``residual_std`` from training data, where there is anything to see."""
        blur = self.config.base_blur * coarse.shape[-2] / BLUR_ROWS
        latent_sum, residual_sum, count = torch.zeros_like(self.latent_std), torch.zeros_like(self.latent_std), 0.0
        for ours, theirs in zip(coarse, truth, strict=True):
            base = self.codec.encode(gaussian_blur(ours, blur)) if self.config.residual else 0.0
            target = self.codec.encode(theirs)
            shown = self._shrink(torch.maximum(ours, theirs)[None, :, 3:])[0] > 0
            latent_sum += (target**2 * shown).sum((0, 2, 3))
            residual_sum += ((target - base) ** 2 * shown).sum((0, 2, 3))
            count += float(shown.sum())
        self.latent_std.copy_((latent_sum / max(count, 1.0)).sqrt().clamp(min=1e-4))
        self.residual_std.copy_((residual_sum / max(count, 1.0)).sqrt().clamp(min=1e-4))


@dataclass(frozen=True)
class Restorer:
    """Restores the 18 views of one person with a trained network, at whatever size they come.

    Views of more rows than the network was trained at keep their own detail: they are restored at its size, and what
    that changed of their base is added to them.

    Attributes:
        model: the network, on the device where it shall wait.
        device: where to compute, if that is not where the network is: its parts are moved there in turn and back. With
            None all is computed where the network is.
        encode_face: the photo [H W 3] to an embedding of its face, None where there is none; for a network that was
            trained with such.
        encode_image: the photo to CLIP's embedding, for a network that knows it.
        anonymous: give the network no identity.
    """

    model: HumanFixer
    device: torch.device | None = None
    encode_face: Callable[[Tensor], Tensor | None] | None = None
    encode_image: Callable[[Tensor], Tensor] | None = None
    anonymous: bool = False

    @torch.inference_mode()
    def __call__(
        self,
        rgb: Float[Tensor, "18 H W 3"],
        alpha: Float[Tensor, "18 H W"],
        seen: Float[Tensor, "18 H W"],
        photo_rgb: Float[Tensor, "H W 3"],
        photo_alpha: Float[Tensor, "H W"],
        face: Float[Tensor, "64 64 3"] | None = None,
        sigma_start: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        sigma_seen: float | None = None,
        progress: Progress | None = None,
    ) -> tuple[Float[Tensor, "18 H W 3"], Float[Tensor, "18 H W"]]:
        """Restored colours over white and alpha, in [0, 1].

        Args:
            rgb, alpha: coarse views over white from azimuths of 20 i degrees, in [0, 1].
            seen: 1 where a pixel shows what the photo saw.
            photo_rgb, photo_alpha: the person of the photo over white, in the window of view 0. It replaces view 0.
            face: crop of the photo's head, None where there is none. Not used where there is an ``encode_face``.
            sigma_start, steps: as trained, if None. With one step the result is close to the mean of what is possible;
                with several it is one possibility.
            seed: of the noise.
            sigma_seen: lower sigma to start from where the photo saw everything; needs several steps.
            progress: is told of every step.
        """
        config = self.model.config
        sigmas = karras_sigmas(steps or config.steps, sigma_start or config.sigma_start, config.sigma_min)
        progress = progress or Silent()
        progress.start("restoring", len(sigmas) - 1)
        device = self.device or self.model.latent_std.device
        coarse = torch.cat([rgb, alpha[..., None]], -1).permute(0, 3, 1, 2)[None].to(device)
        photo = torch.cat([photo_rgb, photo_alpha[..., None]], -1).permute(2, 0, 1)[None].to(device)
        faces, clip = self._identity(photo_rgb, face)
        size = rgb.shape[1:3]
        smaller = config.height, round(size[1] * config.height / size[0])
        fits = smaller[0] >= size[0]
        whole = coarse, seen[None, :, None].to(device), photo[:, None]
        little = [part if fits else shrunk(part, smaller) for part in whole]
        frames = self.model.restored(
            little[0], little[1][:, :, 0], little[2][:, 0], faces.to(device), sigmas,
            torch.Generator().manual_seed(seed), sigma_seen, progress,
            clip=None if clip is None else clip.to(device), device=self.device,
        )  # fmt: skip
        frames = open_cycle(frames)[0]
        if not fits:
            blurred = gaussian_blur(little[0][0], config.base_blur * config.height / BLUR_ROWS)
            # the noise that it starts from leaves traces on what is nobody
            near = gaussian_blur((gaussian_blur(little[0][0][:, 3:], NEAR_ROWS) > 0.03).float(), 1.0)
            change = functional.interpolate((frames - blurred) * near, size=size, mode="bicubic", align_corners=False)
            frames = with_decided_edges((coarse[0] + change).clamp(0, 1), coarse[0])
            frames[0] = photo[0]
        images = frames.permute(0, 2, 3, 1).cpu()
        return images[..., :3].contiguous(), images[..., 3].contiguous()

    def _identity(
        self, photo_rgb: Float[Tensor, "H W 3"], face: Float[Tensor, "64 64 3"] | None
    ) -> tuple[Float[Tensor, "1 *face"], Float[Tensor, "1 1 D"] | None]:
        """Faces and image tokens for ``HumanFixer.conditions``; zeros and None for nobody."""
        nobody = torch.zeros(1, *self.model.identity.face_shape)
        if self.anonymous:
            return nobody, None
        if self.encode_face is not None:
            found = self.encode_face(photo_rgb)
        else:
            found = None if face is None or nobody.ndim == 2 else face.permute(2, 0, 1)
        image = self.encode_image and self.encode_image(photo_rgb).float()[None, None]
        return nobody if found is None else found[None].to(nobody), image


def with_decided_edges(images: Float[Tensor, "L 4 H W"], coarse: Float[Tensor, "L 4 H W"]) -> Float[Tensor, "L 4 H W"]:
    """Images over white whose half-covered edges are drawn nearer to all or nothing, where they are not ``coarse``'s.

    The mean of what is possible has a veil round the person; a person has an edge where the veil is half as dense.
    """
    alpha = images[:, 3:]
    straight = ((images[:, :3] - (1 - alpha)) / alpha.clamp(min=0.1)).clamp(0, 1)
    decided = (DECISION * (alpha - 0.5) + 0.5).clamp(0, 1)
    decided = torch.where((alpha - coarse[:, 3:]).abs() < 0.02, coarse[:, 3:], decided)
    return torch.cat([straight * decided + 1 - decided, decided], 1)


def shrunk(images: Float[Tensor, "B L C H W"], size: tuple[int, int]) -> Float[Tensor, "B L C h w"]:
    """Images at a smaller size, every pixel the mean of what it covers."""
    return functional.interpolate(images.flatten(0, 1), size=size, mode="area").unflatten(0, images.shape[:2])
