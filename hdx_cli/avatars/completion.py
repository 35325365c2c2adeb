"""A small network that makes up, in canonical maps, what the photo does not show: hair behind a face, above all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..bodies.base import PARTS, BodyModel
from ..errors import WeightsError
from ..mesh import project, vertex_normals
from ..weights import LOCK, REINSTALL, read_weights
from . import surface, unseen
from .canonical import Layout, layout
from .explicit import Draft, parts_of, unseen_colours

WEIGHTS = Path(__file__).with_name("completion.safetensors")
FORMAT = "hdx-completion-1"
BODY = "anny"  # whose surface the bundled weights were trained on
REPAINTED = ("head", "neck")  # elsewhere the network's errors are smaller, but hems fade and skirts turn to legs
SOFT = 1.5  # texels over which that fades
SOLID = 0.9  # pixels with less of the person in them lend no colour
OUTWARD_UNIT_M = 0.05  # displacements reach the network in these units
RESIDUAL = 0.25  # at most this much of a colour is invented
BEHIND_M = 0.01  # this far behind the nearest surface is hidden


@dataclass(frozen=True)
class Texels:
    """What one photo tells of the T covered texels of a layout.

    Attributes:
        seen: whether the photo shows the texel; facing: cosine between its normal and the ray to the camera.
        outward: displacement of the clothes there, metres.
        base: the photo's colour where seen, the rules' colour elsewhere, sRGB.
        nearest: colour of the nearest seen points of the same limb.
        through: colour of the pixel the texel lies behind, or of the nearest one of the same limb.
    """

    seen: Bool[np.ndarray, "T"]
    facing: Float[np.ndarray, "T"]
    outward: Float[np.ndarray, "T"]
    base: Float[np.ndarray, "T 3"]
    nearest: Float[np.ndarray, "T 3"]
    through: Float[np.ndarray, "T 3"]


def texels_of(draft: Draft, model: BodyModel, layout: Layout) -> Texels:
    """Look every texel up in the photo."""
    triangles, barycentric = layout.vertices[layout.covered], layout.barycentric[layout.covered]
    means = np.einsum("pk,pka->pa", barycentric, draft.vertices[triangles])
    normals = np.einsum("pk,pka->pa", barycentric, vertex_normals(draft.vertices, model.faces)[triangles])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    pixels, depth = project(means, draft.camera)
    points = surface.Points(means, np.zeros((len(means), 3, 3)), normals, pixels, triangles, barycentric)

    height, width = draft.alpha.shape
    framed = (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    column, row = np.clip(pixels[:, 0].astype(int), 0, width - 1), np.clip(pixels[:, 1].astype(int), 0, height - 1)
    rays = draft.camera.positions()[0].double().numpy() - means
    facing = np.einsum("pa,pa->p", normals, rays / np.linalg.norm(rays, axis=1, keepdims=True))
    shown = framed & (depth < draft.buffer.depth[row, column] + BEHIND_M) & (facing > 0)
    seen = shown & (facing > surface.GRAZING_COSINE) & (draft.alpha[row, column] > SOLID)

    parts, seen_parts = parts_of(model, points), parts_of(model, draft.seen)
    base = unseen.smoothed(draft.rgb, draft.alpha > SOLID)[row, column].astype(np.float64)
    base[~seen] = unseen_colours(draft, model, points.select(~seen), shown[~seen])
    in_rest = [np.einsum("pk,pka->pa", p.barycentric, draft.rest.vertices[p.vertices]) for p in (points, draft.seen)]
    solid = draft.alpha[draft.seen.pixels[:, 1].astype(int), draft.seen.pixels[:, 0].astype(int)] > SOLID
    nearest = unseen.nearest_seen(in_rest[0], parts, in_rest[1][solid], seen_parts[solid], draft.seen_rgb[solid])
    through = unseen.see_through(draft.rgb, draft.limb, draft.alpha > SOLID, pixels, parts)
    outward = np.einsum("pk,pk->p", barycentric, draft.outward[triangles])
    return Texels(seen, facing, outward, base, nearest, through)


@dataclass(frozen=True)
class Config:
    """Sizes of the network.

    Attributes:
        channels: per resolution, the finest (half the maps') first; every next one has half the resolution.
        palette: how many colours are gathered from what the photo shows.
    """

    channels: tuple[int, ...] = (48, 64, 96, 128)
    palette: int = 6


CANDIDATES = 3  # base; base, blurred; nearest, blurred
BLUR = 3.0  # texels
OBSERVED = 3 * 3 + 3  # colours of base, nearest (blurred) and through; seen, facing, outward
CONSTANTS = 6 + len(PARTS)


@dataclass(frozen=True)
class Inputs:
    """A batch of people on the maps; colours in [0, 1].

    Attributes:
        observed: what the network reads [B 2 12 H W]; candidates: colours to choose from [B 2 3 3 H W].
    """

    observed: Float[Tensor, "B 2 C H W"]
    candidates: Float[Tensor, "B 2 K 3 H W"]


def inputs_of(texels: Texels, layout: Layout) -> Inputs:
    """One person's maps (B = 1)."""
    spread = layout.spread
    base, nearest, through = (
        spread(colours.astype(np.float32)) for colours in (texels.base, texels.nearest, texels.through)
    )
    base_blurred, nearest_blurred = layout.blur(base, BLUR), layout.blur(nearest, BLUR)
    scalars = np.stack([texels.seen, texels.facing, texels.outward / OUTWARD_UNIT_M], axis=1).astype(np.float32)
    observed = np.concatenate([base, nearest_blurred, through, spread(scalars)], axis=-1)
    candidates = np.stack([base, base_blurred, nearest_blurred], axis=-2)
    return Inputs(
        torch.from_numpy(observed.transpose(0, 3, 1, 2).copy())[None],
        torch.from_numpy(candidates.transpose(0, 3, 4, 1, 2).copy())[None],
    )


def constants_of(layout: Layout, parts: Int[np.ndarray, "V"]) -> Float[Tensor, "C H W"]:
    """What is the same for everybody: where a texel lies on the template and on which body part [C H W]."""
    _, height, width, _ = layout.vertices.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    depth = np.einsum("shwk,shwk->shw", layout.barycentric, layout.template[layout.vertices][..., 2]) / 0.2
    part = parts[layout.vertices[0, ..., 0]] == np.arange(len(PARTS))[:, None, None]
    maps = [x[None], y[None], depth, layout.covered, part & layout.covered[0]]
    return torch.from_numpy(np.concatenate(maps).astype(np.float32))


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, incoming: int, outgoing: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, incoming), nn.Conv2d(incoming, outgoing, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, outgoing), nn.Conv2d(outgoing, outgoing, 3, padding=1)
        self.shortcut = nn.Conv2d(incoming, outgoing, 1) if incoming != outgoing else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        made = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(made)))


class CompletionNet(nn.Module):
    """U-Net over both maps at half their resolution.

    It never paints freely: every texel takes a mixture of candidate colours and of a small palette that attention
    gathers from what the photo shows, so that hair of any colour comes out as it is, and a bounded residual.
    """

    def __init__(self, config: Config = Config()):
        super().__init__()
        self.config = config
        widths = config.channels
        self.choices = CANDIDATES + config.palette
        self.stem = nn.Conv2d(2 * OBSERVED + CONSTANTS, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(a, b) for a, b in zip((widths[0], *widths), widths, strict=False))
        self.middle = Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            Block(below + here, here) for below, here in zip((widths[-1], *widths[:0:-1]), widths[::-1], strict=True)
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv2d(widths[0], 2 * (self.choices + config.palette + 3), 3, padding=1)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, inputs: Inputs, constants: Float[Tensor, "C H W"]) -> Float[Tensor, "B 2 3 H W"]:
        """Colours in [0, 1] of every texel."""
        batch, _, _, height, width = inputs.observed.shape
        small = F.avg_pool2d(inputs.observed.flatten(1, 2), 2)
        fixed = F.avg_pool2d(constants[None], 2).expand(batch, -1, -1, -1)
        x = self.stem(torch.cat([small, fixed], 1) - 0.5)
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            kept.append(x)
        x = self.middle(x)
        for level, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2) if level else x
            x = block(torch.cat([x, kept.pop()], 1))
        x = self.head(F.silu(self.norm(x))).unflatten(1, (2, -1))
        mix, key, residual = x.split([self.choices, self.config.palette, 3], 2)

        observed = small.unflatten(1, (2, -1))
        seen = observed[:, :, 9:10] > 0.5
        key = key.masked_fill(~seen, -1e4).transpose(1, 2).flatten(2).softmax(-1)
        palette = torch.einsum("bkp,bcp->bkc", key, observed[:, :, :3].transpose(1, 2).flatten(2))

        def enlarged(maps: Float[Tensor, "B 2 C h w"]) -> Float[Tensor, "B 2 C H W"]:
            full = F.interpolate(maps.flatten(1, 2), (height, width), mode="bilinear", align_corners=False)
            return full.unflatten(1, (2, -1))

        share = enlarged(mix.softmax(2))
        colours = torch.einsum("bskhw,bskchw->bschw", share[:, :, :CANDIDATES], inputs.candidates)
        colours = colours + torch.einsum("bskhw,bkc->bschw", share[:, :, CANDIDATES:], palette)
        return (colours + RESIDUAL * enlarged(residual.tanh())).clamp(0, 1)


def save_weights(path: Path, net: CompletionNet, notes: dict[str, str] | None = None) -> None:
    """Write weights as float16 with the configuration in the header, whole or not at all."""
    from safetensors.torch import save

    tensors = {name: value.detach().half().contiguous() for name, value in net.state_dict().items()}
    partial = path.with_name(path.name + ".part")
    content = save(tensors, {"format": FORMAT, "config": json.dumps(asdict(net.config))} | (notes or {}))
    partial.write_bytes(content)
    os.replace(partial, path)


def load_weights(path: Path = WEIGHTS, lock: Path | None = LOCK) -> CompletionNet:
    """The network in float32, ready to run; ``lock`` as for ``weights.read_weights``.

    Raises:
        WeightsError: the file is missing, is not what the lock says, or holds no such network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content, header = read_weights(path, lock)
    try:
        if header.get("format") != FORMAT:
            raise ValueError(f"not a file of format {FORMAT}")
        config = json.loads(header["config"])
        net = CompletionNet(Config(tuple(config["channels"]), config["palette"]))
        net.load_state_dict({name: value.float() for name, value in load(content).items()})
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path}: no weights of the completion ({reason})", hint=REINSTALL) from None
    return net.eval()


def complete(
    draft: Draft,
    model: BodyModel,
    hidden: surface.Points,
    colours: Float[np.ndarray, "Q 3"],
    weights: Path | None = None,
) -> Float[np.ndarray, "Q 3"]:
    """Colours [Q 3] of unseen points: those by rule, moved to what the network makes of the person.

    Args:
        draft: the photo on its body; model: that the bundled weights are for (``BODY``).
        hidden: unseen points; colours: theirs by rule.
        weights: other weights than the bundled ones.
    """
    net = load_weights() if weights is None else load_weights(weights, lock=None)
    maps = layout(model.rest(model.default_shape).vertices, model.faces)
    texels = texels_of(draft, model, maps)
    inputs = inputs_of(texels, maps)
    with torch.no_grad():
        made = net(inputs, constants_of(maps, model.parts))
    wanted = made[0].permute(0, 2, 3, 1).numpy() - maps.spread(texels.base)
    change = correction(maps, model.parts, texels.seen, wanted)
    return np.clip(colours + maps.sample(change, *maps.place(hidden.vertices, hidden.barycentric)), 0, 1)


def repainted(maps: Layout, parts: Int[np.ndarray, "V"]) -> Bool[np.ndarray, "2 H W"]:
    """Texels of the body parts whose colours the network decides."""
    return maps.covered & np.isin(parts[maps.vertices[..., 0]], [PARTS.index(name) for name in REPAINTED])


def correction(
    maps: Layout, parts: Int[np.ndarray, "V"], seen: Bool[np.ndarray, "T"], change: Float[np.ndarray, "2 H W 3"]
) -> Float[np.ndarray, "2 H W 3"]:
    """What to add to the colours by rule, of the ``change`` that the network wants: nothing where the photo shows them,
    and nothing away from head and nape, where the rules keep weave and hems and the network blurs them."""
    change = maps.spread(np.where(seen[:, None], 0.0, change[maps.covered]).astype(np.float32))
    return change * maps.blur(repainted(maps, parts)[..., None].astype(np.float32), SOFT)
