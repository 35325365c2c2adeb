"""The paper's ablations of HumanFixer at this project's size: restored views, and the avatars refined on them.

    python tests/bench/bench_ablation.py PEOPLE --runs RUNS --out OUT --weights NAME/SEED=FILE[*ROUNDS] ... [--limit 8]

PEOPLE is laid out as for ``bench_avatar.py``. RUNS/NNN holds a person's observation/ and coarse avatar with its
body.npz (``--avatar``, "completion" unless told), as ``bench_refine.py --stages completion`` leaves them. Weights of
one NAME and several SEEDs are one row: scores are averaged over seeds first, intervals are bootstrapped over people.

- generation: the coarse avatar's views 1-17 through the true cameras at the network's own size, restored, against the
  truth of that size; ``gap`` is by how much view 17 and view 0 differ more than neighbours do in the truth's orbit
- reconstruction: the avatar refined on its own restored orbit, once or in as many ROUNDS, views 1-17, 480 px high

A NAME that begins with "without" has no coarse views: the photo stands in the place of every one of them. Such weights,
and those of 0 ROUNDS, are only measured in generation. Results are kept per person and weights: an interrupted run goes
on. OUT/NNN.png shows views 2, 5, 9 and 13 of the truth, the coarse avatar and every weights' restored views;
OUT/attention.png how much the frames of each (row) look at one another in the temporal attention of the last block (the
paper's figure 4), the mean over a person's pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import numpy as np  # noqa: E402
import torch
from bench_avatar import load
from bench_backbones import scored
from bench_refine import at_height, over_white, true_cameras
from diffusers.models.attention import TemporalBasicTransformerBlock
from PIL import Image

from hdx_cli import stages
from hdx_cli.avatars import refine as refining
from hdx_cli.avatars.avatar_file import read_avatar
from hdx_cli.avatars.base import Avatar
from hdx_cli.avatars.turntable import closed_in, through_window, views_to_restore
from hdx_cli.bodies.base import BodyFit
from hdx_cli.camera import Cameras, orbit_of
from hdx_cli.evaluation.metrics import blurred
from hdx_cli.humanfixer.attention import FrameAttention, cycle_mask
from hdx_cli.humanfixer.checkpoint import load_weights
from hdx_cli.humanfixer.restorer import Restorer, shrunk
from hdx_cli.observation import Observation
from hdx_cli.preprocess.face import face_crop
from hdx_cli.progress import Silent
from hdx_cli.run_files import load_body_fit, load_observation
from hdx_cli.training.evaluate import (
    bootstrap_interval,
    seam_gap_db,
    sharpness_ratio,
    view_scores,
)

SHOWN = (2, 5, 9, 13)
HEIGHT = 480  # of reconstructions
BLUR_PX = 15.0  # of 960 rows: the best blur of rules on validation people
WITHOUT = "without"


class Watching(FrameAttention):
    """The same attention, which adds up its own weights [L L]."""

    def __init__(self, last: int | None):
        super().__init__(last)
        self.total: torch.Tensor | float = 0.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        queries, keys = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in (attn.to_q, attn.to_k)
        )
        logits = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        if self.last is not None and hidden_states.shape[1] == self.last + 1:
            logits = logits.masked_fill(~cycle_mask(self.last), float("-inf"))
        self.total = self.total + logits.softmax(-1).mean((0, 1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def attention_of(fixer: Restorer, views: tuple) -> np.ndarray:
    """[L L] of the last temporal block while ``views`` are restored."""
    *_, block = (m for m in fixer.model.unet.modules() if isinstance(m, TemporalBasicTransformerBlock))
    old = block.attn1.processor
    watching = Watching(old.last)
    block.attn1.set_processor(watching)
    fixer(*views, seed=0)
    block.attn1.set_processor(old)
    return (watching.total / watching.total.sum(1, keepdim=True)).detach().numpy()


def shown_to_network(
    avatar: Avatar, observation: Observation, camera: Cameras, cameras: Cameras, height: int, coarse: bool
) -> tuple:
    """What ``Restorer`` takes at the network's own size: coarse views, or the photo in the place of all of them."""
    rgb, alpha, seen = views_to_restore(avatar.gaussians(), avatar.visibility, cameras)
    photo, photo_alpha = through_window(observation.foreground, observation.alpha, camera, cameras[0])
    photo = photo * photo_alpha[..., None] + 1 - photo_alpha[..., None]
    size = height, round(cameras.width * height / cameras.height)

    def small(images: torch.Tensor) -> torch.Tensor:  # [C H W *]
        return shrunk(images.permute(0, 3, 1, 2)[None], size)[0].permute(0, 2, 3, 1)

    rgb, alpha, seen = small(rgb), small(alpha[..., None])[..., 0], small(seen[..., None])[..., 0]
    photo, photo_alpha = small(photo[None])[0], small(photo_alpha[None, ..., None])[0, ..., 0]
    if not coarse:
        rgb, alpha = photo.expand_as(rgb).contiguous(), photo_alpha.expand_as(alpha).contiguous()
        seen = torch.zeros_like(seen)
    crop = face_crop(observation)
    return rgb, alpha, seen, photo, photo_alpha, None if crop is None else torch.from_numpy(crop).float() / 255


def generation(rgb: torch.Tensor, alpha: torch.Tensor, truth: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Means over views 1-17."""
    rows = []
    for view in range(1, len(rgb)):
        pair = rgb[view].clamp(0, 1), alpha[view].clamp(0, 1), truth[0][view], truth[1][view]
        rows.append(view_scores(*pair) | {"sharpness": sharpness_ratio(*pair)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
        "gap": seam_gap_db(truth[0]) - seam_gap_db(rgb)
    }


def kept(folder: Path, name: str) -> Path:
    """A person's results of some weights; their picture lies beside."""
    return folder / f"{name.replace('/', '_')}.json"


def measure(person: Path, arguments: argparse.Namespace, weights: dict[str, tuple[Path, int]]) -> None:
    """Everything of one person, kept in OUT/NNN/*.json."""
    folder, run = arguments.out / person.name, arguments.runs / person.name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in ("coarse", *weights) if not kept(folder, name).exists()]
    if not wanted:
        return
    images, truth = load(person)
    observation = load_observation(run / "observation")
    fit: BodyFit = load_body_fit(run / arguments.avatar / "body.npz")
    avatar = read_avatar(run / arguments.avatar)
    cameras = true_cameras(truth, fit)
    large = at_height(cameras, HEIGHT)
    rows = stages.RESTORED_HEIGHT
    around = orbit_of(closed_in(avatar.gaussians().means, fit.camera, 2 * rows // 3, rows), stages.ORBIT_VIEWS)
    every = refining.RefineSettings()
    photo = refining.photo_views(fit.camera, observation.foreground, observation.alpha, every.max_side_px)
    for name in wanted:
        started = time.process_time()
        row: dict = {}
        if name == "coarse":
            height = load_weights(next(iter(weights.values()))[0], lock=None).config.height
            given = shown_to_network(avatar, observation, fit.camera, large, height, True)
            small = over_white(images, height)
            row["generation"] = generation(given[0], given[1], small)
            sigma = BLUR_PX * height / 960
            soft = [blurred(*view, sigma) for view in zip(given[0], given[1], strict=True)]
            row["blurred"] = generation(*(torch.stack(part) for part in zip(*soft, strict=True)), small)
            row["reconstruction"] = scored(avatar, cameras, images, HEIGHT)[0]["all"]
            strip = given[0]
            Image.fromarray(as_picture(small[0])).save(folder / "truth.png")
        else:
            file, rounds = weights[name]
            fixer = Restorer(load_weights(file, lock=None))
            height, coarse = fixer.model.config.height, not name.startswith(WITHOUT)
            given = shown_to_network(avatar, observation, fit.camera, large, height, coarse)
            strip, alpha = fixer(*given, seed=0)
            row["generation"] = generation(strip, alpha, over_white(images, height))
            row["attention"] = attention_of(fixer, given).tolist()
            if coarse and rounds:
                settings = replace(every, sigmas=every.sigmas[:rounds])

                def restored(made: Avatar, turn: int, fixer=fixer, settings=settings) -> refining.Views:
                    sigma = None if turn == 0 else settings.sigmas[turn]
                    pictures = stages.restored_pictures(
                        fixer, made, observation, fit.camera, around, sigma, turn, Silent()
                    )
                    return refining.restored_views(around, pictures, made, settings, fixer.model.config.height)

                refined, row["rounds"] = refining.refine_in_rounds(avatar, photo, restored, settings)
                row["reconstruction"] = scored(refined, cameras, images, HEIGHT)[0]["all"]
        Image.fromarray(as_picture(strip)).save(kept(folder, name).with_suffix(".png"))
        partial = folder / "row.part"
        partial.write_text(json.dumps(row), encoding="utf-8")
        os.replace(partial, kept(folder, name))
        print(person.name, name, f"{row['generation']['psnr_union_db']:.2f} dB generated",
              f"{row.get('reconstruction', {}).get('psnr_union_db', float('nan')):.2f} reconstructed",
              f"{time.process_time() - started:.0f} CPU s", flush=True)  # fmt: skip


def as_picture(views: torch.Tensor) -> np.ndarray:
    return (torch.cat([views[view] for view in SHOWN], 1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def table(people: list[str], names: list[str], out: Path) -> str:
    """Generation and reconstruction, with intervals of the differences to the first variant over the same people."""
    rows = {(person, name): json.loads(kept(out / person, name).read_text())
            for person in people for name in ("coarse", *names)}  # fmt: skip
    variants = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in names))

    def of(variant: str, what: str, score: str) -> np.ndarray:  # [people], means over seeds
        seeds = [name for name in names if name.rsplit("/", 1)[0] == variant] or [variant]
        return np.array([np.mean([rows[person, seed][what][score] for seed in seeds]) for person in people])

    lines = []
    for what, listed in (("generation", ["coarse", "blurred", *variants]), ("reconstruction", ["coarse", *variants])):
        lines.append(f"{what}, {len(people)} people, views 1-17")
        lines.append(f"{'':24}{'seeds':>6}{'union dB':>10}{'of seeds':>16}{'full dB':>9}{'SSIM':>8}{'IoU':>8}"
                     f"{'sharp':>8}{'gap dB':>8}  union dB over {variants[0]} [95 %]")  # fmt: skip
        for variant in listed:
            key = ("coarse", "blurred") if variant == "blurred" else (variant, what)
            seeds = [name for name in names if name.rsplit("/", 1)[0] == variant]
            if any(what not in rows[people[0], seed] for seed in seeds):
                continue
            union = of(*key, "psnr_union_db")
            each = " ".join(f"{np.mean([rows[person, seed][what]['psnr_union_db'] for person in people]):.2f}"
                            for seed in seeds)  # fmt: skip
            line = f"{variant:24}{len(seeds):6}{union.mean():10.2f}{each:>16}"
            for score, spec in (("psnr_full_db", "9.2f"), ("ssim", "8.3f"), ("iou", "8.3f"), ("sharpness", "8.2f")):
                line += f"{of(*key, score).mean():{spec}}"
            line += f"{of(*key, 'gap').mean():8.2f}" if what == "generation" else f"{'':8}"
            if variant in variants[1:]:
                gains = union - of(variants[0], what, "psnr_union_db")
                low, high = bootstrap_interval(gains)
                line += f"  {gains.mean():+.3f} [{low:+.3f} {high:+.3f}]"
            lines.append(line)
    return "\n".join(lines)


def save_pictures(people: list[str], names: list[str], out: Path) -> None:
    """Sheets of the restored views and of the attention."""
    for person in people:
        strips = [np.asarray(Image.open(kept(out / person, name).with_suffix(".png")))
                  for name in ("truth", "coarse", *names)]  # fmt: skip
        Image.fromarray(np.concatenate(strips)).save(out / f"{person}.png")
    maps = []
    for name in names:
        rows = [np.array(json.loads(kept(out / person, name).read_text())["attention"])
                for person in people]  # fmt: skip
        mean = np.mean(rows, 0)
        ends = [mean[0, 0], mean[0, -1], mean[0, 1], mean[0, 9]]
        print(f"{name}: view 0 looks at itself {ends[0]:.3f}, at the last frame {ends[1]:.3f}, "
              f"at view 1 {ends[2]:.3f}, at view 9 {ends[3]:.3f} (even: {1 / len(mean):.3f})")  # fmt: skip
        picture = np.kron(mean / mean.max(), np.ones((8, 8)))
        maps.append(np.pad(picture, ((4, 160 - len(picture)), (4, 160 - len(picture)))))
    Image.fromarray((np.concatenate(maps, 1) * 255).astype(np.uint8)).save(out / "attention.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--avatar", default="completion")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", required=True, metavar="NAME/SEED=FILE[*ROUNDS]")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="begin with this person, to share the work")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights: dict[str, tuple[Path, int]] = {}
    for name, file in (item.split("=", 1) for item in arguments.weights):
        path, _, rounds = file.partition("*")
        weights[name] = Path(path), int(rounds or 1)
    people = sorted(path for path in arguments.people.iterdir() if (path / "cams.npz").exists())[: arguments.limit]
    for person in people[arguments.first :]:
        measure(person, arguments, weights)
    names = [person.name for person in people]
    done = all(kept(arguments.out / n, w).exists() for n in names for w in ("coarse", *weights))
    if not done:
        print("other people are not done yet")
        return
    save_pictures(names, list(weights), arguments.out)
    text = table(names, list(weights), arguments.out)
    (arguments.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
