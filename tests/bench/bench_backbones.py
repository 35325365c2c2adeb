"""What backbones are worth on people whose other views are known: quality, time, memory, size; coarse and refined.

    python tests/bench/bench_backbones.py PEOPLE --out OUT [--limit 8] [--backbones NAME,NAME] [--seen OLD]

PEOPLE is laid out as for ``bench_avatar.py``, and so is the protocol: the photo is view 0 over a plain grey wall, its
focal length is known, mask, landmarks and body are estimated; views 1-17 are scored over white, 480 px high. Each
person and backbone is a process of its own, so that time and peak memory are its own. What was found in a photo is kept
in OUT/NNN (``--seen OLD`` takes it from OLD/NNN/observation and body.npz where that exists), every result as
OUT/NNN/BACKBONE.json: an interrupted run goes on, and pairs that are done are only read. OUT/table.txt is printed,
OUT/NNN/BACKBONE.png shows views 0, 2, 5, 9 and 13 of the truth and of the three avatars:

- bare: the backbone fitted to the photo with nothing that was trained by this project, the coarse avatar of the paper:
  body from the detector's landmarks alone, unseen colours by rules
- coarse: what ``hdx fit-coarse`` makes, with the lifting and the completion network
- refined: after restoring and refining
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import cv2  # noqa: E402
import numpy as np
import torch
from bench_avatar import load
from bench_refine import true_cameras
from PIL import Image

from hdx_cli import stages
from hdx_cli.avatars import backbones, explicit
from hdx_cli.avatars import refine as refining
from hdx_cli.avatars.base import Avatar
from hdx_cli.avatars.turntable import closed_in, samples_per_pixel
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import BodyFit
from hdx_cli.bodies.fit import BodyPriors, fit_body, fit_rig, rig_of
from hdx_cli.camera import Cameras, orbit_of
from hdx_cli.humanfixer.checkpoint import load_weights
from hdx_cli.humanfixer.restorer import Restorer
from hdx_cli.observation import Photo
from hdx_cli.preprocess import observe
from hdx_cli.progress import Silent
from hdx_cli.rasterize import rasterize
from hdx_cli.run_files import load_body_fit, load_observation, save_body_fit, save_observation
from hdx_cli.training.evaluate import (
    bootstrap_interval,
    by_side,
    sharpness_ratio,
    view_scores,
)

SHOWN = (0, 2, 5, 9, 13)
STEPS = ("bare", "coarse", "refined")
SCORES = ("psnr_union_db", "psnr_full_db", "ssim", "iou", "sharpness")


def observed(person: Path, folder: Path, seen: Path | None) -> None:
    """``observation/`` and ``body.npz`` of the photo, made or copied where they are missing."""
    if (folder / "body.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    old = seen / person.name if seen else None
    bodies = [path for path in (old / "body.npz", *sorted(old.glob("*/body.npz"))) if path.exists()] if old else []
    if bodies and (old / "observation").is_dir():
        shutil.copytree(old / "observation", folder / "observation", dirs_exist_ok=True)
        shutil.copyfile(bodies[0], folder / "body.npz")
        return
    images, truth = load(person)
    wall = np.linspace(0.72, 0.82, images[0].shape[0], dtype=np.float32)[:, None, None]
    photo = Photo(images[0][..., :3] * images[0][..., 3:] + wall * (1 - images[0][..., 3:]))
    observation, _, _ = observe(photo, name=person.name)
    (folder / "observation").mkdir(exist_ok=True)
    save_observation(folder / "observation", observation)
    save_body_fit(folder / "body.npz", fit_body(anny.load(), observation, focal_px=float(truth.Ks[0, 0, 0])))


def scored(avatar: Avatar, cameras: Cameras, images: list[np.ndarray], height: int) -> tuple[dict, np.ndarray]:
    """Means by side of the scores of all views but the photo's, and a strip of pictures."""
    scale = height / cameras.height
    cameras = cameras.resampled(scale, 0, 0, round(cameras.width * scale), height)
    gaussians, rows, strip = avatar.gaussians(), [], []
    for view, image in enumerate(images):
        with torch.no_grad():
            made = rasterize(gaussians, cameras[view], background=torch.ones(3), supersample=samples_per_pixel(height))
        size = (cameras.width, height)
        covered = cv2.resize(
            np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], 2), size, interpolation=cv2.INTER_AREA
        )
        true_alpha = torch.from_numpy(covered[..., 3].copy())
        true_rgb = torch.from_numpy(covered[..., :3] + 1 - covered[..., 3:])
        pair = (made.rgb[0].clamp(0, 1), made.alpha[0], true_rgb, true_alpha)
        rows.append(view_scores(*pair) | {"sharpness": sharpness_ratio(*pair)})
        if view in SHOWN:
            strip.append(torch.stack([true_rgb, pair[0]]))
    return by_side(rows), torch.cat(strip, dim=2).numpy()


def measure(person: Path, name: str, out: Path, height: int, profile: str) -> None:
    """Everything of one person and backbone, kept as ``BACKBONE.json``."""
    folder, model = out / person.name, anny.load()
    images, truth = load(person)
    observation, fit = load_observation(folder / "observation"), load_body_fit(folder / "body.npz")
    bare_rig = replace(rig_of(model), lifting=None)
    bare_fit = fit_rig(bare_rig, observation, BodyPriors(), focal_px=float(truth.Ks[0, 0, 0]))[0]
    row: dict = {
        "person": person.name,
        "backbone": name,
        "profile": profile,
        "height": height,
        "threads": torch.get_num_threads(),
    }

    def timed(what: str, since: tuple[float, float]) -> None:
        row[f"{what}_cpu_s"], row[f"{what}_s"] = time.process_time() - since[0], time.perf_counter() - since[1]

    def keep(what: str, avatar: Avatar, fit: BodyFit) -> np.ndarray:
        (folder / name / what).mkdir(parents=True, exist_ok=True)
        backbones.write(folder / name / what, avatar)
        row[f"{what}_mb"] = sum(path.stat().st_size for path in (folder / name / what).iterdir()) / 1e6
        row[what], strip = scored(avatar, true_cameras(truth, fit), images, height)
        row[f"{what}_front_db"] = avatar.scores["front_psnr_db"]
        return strip

    started = time.process_time(), time.perf_counter()
    rules = explicit.Settings(completion=False)
    bare = backbones.fit_coarse(name, observation, bare_fit, model, rules, profile=profile)
    timed("bare", started)

    started = time.process_time(), time.perf_counter()
    coarse = backbones.fit_coarse(name, observation, fit, model, profile=profile)
    timed("coarse", started)
    row["gaussians"] = len(coarse.canonical)

    started = time.process_time(), time.perf_counter()
    fixer = Restorer(load_weights())
    rows = stages.RESTORED_HEIGHT
    around = orbit_of(closed_in(coarse.gaussians().means, fit.camera, 2 * rows // 3, rows), stages.ORBIT_VIEWS)
    pictures = stages.restored_pictures(fixer, coarse, observation, fit.camera, around, None, 0, Silent())
    timed("restore", started)

    started = time.process_time(), time.perf_counter()
    settings = refining.RefineSettings()
    settings = replace(settings, sigmas=settings.sigmas[: stages.DEFAULT_ROUNDS])
    photo = refining.photo_views(fit.camera, observation.foreground, observation.alpha, settings.max_side_px)
    views = refining.restored_views(around, pictures, coarse, settings, fixer.model.config.height)
    refined, rounds = refining.refine_in_rounds(
        coarse, photo, lambda avatar, turn: views, settings, fit=backbones.refiner(coarse)
    )
    timed("refine", started)
    row["rounds"] = rounds
    row["peak_mb"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )  # before scoring, which is not the user's
    strips = [keep("bare", bare, bare_fit), keep("coarse", coarse, fit), keep("refined", refined, fit)]
    sheet = np.concatenate([strips[0][0], *(strip[1] for strip in strips)])
    Image.fromarray((sheet.clip(0, 1) * 255).astype(np.uint8)).save(folder / f"{name}.png")
    partial = folder / f"{name}.json.part"
    partial.write_text(json.dumps(row) + "\n", encoding="utf-8")
    os.replace(partial, folder / f"{name}.json")
    union = [row[what]["all"]["psnr_union_db"] for what in STEPS]
    print(
        f"{person.name} {name}: union {union[0]:.2f} bare, {union[1]:.2f} coarse, {union[2]:.2f} dB refined, "
        f"CPU s {row['coarse_cpu_s']:.0f} + {row['restore_cpu_s']:.0f} + {row['refine_cpu_s']:.0f}, "
        f"peak {row['peak_mb']:.0f} MB",
        flush=True,
    )


def table(people: list[str], names: list[str], out: Path) -> str:
    """Means over the people for whom all backbones are done."""
    rows = {(person, name): json.loads((out / person / f"{name}.json").read_text())
            for person in people for name in names if (out / person / f"{name}.json").exists()}  # fmt: skip
    common = [person for person in people if all((person, name) in rows for name in names)]
    if not common:
        return "nobody is done yet"
    lines = [
        f"{len(common)} people, views 1-17: mean of views, then of people",
        f"{'':32}{'union dB':>10}{'full dB':>9}{'SSIM':>8}{'IoU':>8}{'sharp':>8}"
        f"{'front':>8}{'side':>8}{'back':>8}{'photo dB':>10}"
        f"{'CPU s':>8}{'peak MB':>9}{'file MB':>9}{'Gaussians':>11}  union dB over bare, over coarse [95 %]",
    ]
    for name in names:
        of = [rows[person, name] for person in common]
        for step, what in enumerate(STEPS):
            line = f"{name + ' ' + what:32}" + "".join(
                f"{np.mean([row[what]['all'][score] for row in of]):{spec}}"
                for score, spec in zip(SCORES, ("10.2f", "9.2f", "8.3f", "8.3f", "8.2f"), strict=True)
            )
            line += "".join(
                f"{np.mean([row[what][side]['psnr_union_db'] for row in of]):8.2f}"
                for side in ("front", "side", "back")
            )
            seconds = [row["restore_cpu_s"] + row["refine_cpu_s"] if step == 2 else row[what + "_cpu_s"] for row in of]
            line += f"{np.mean([row[what + '_front_db'] for row in of]):10.1f}{np.mean(seconds):8.0f}"
            line += f"{np.max([row['peak_mb'] for row in of]):9.0f}{np.mean([row[what + '_mb'] for row in of]):9.1f}"
            line += f"{np.mean([row['gaussians'] for row in of]):11.0f}  "
            for before in STEPS[:step]:
                gains = np.array(
                    [row[what]["all"]["psnr_union_db"] - row[before]["all"]["psnr_union_db"] for row in of]
                )
                low, high = bootstrap_interval(gains)
                line += f"{gains.mean():+.2f} [{low:+.2f} {high:+.2f}] {(gains > 0).sum()}/{len(gains)}  "
            if what == "refined":
                line += f"{sum(bool(row['rounds'][0]['kept']) for row in of)} kept"
            lines.append(line.rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="results, table and pictures")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--backbones", default=",".join(backbones.NAMES))
    parser.add_argument("--seen", type=Path, help="runs that have observation/ and body.npz of the same people")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", nargs=2, metavar=("PERSON", "BACKBONE"), help="this pair only, in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        person = args.people / args.one[0]
        observed(person, args.out / person.name, args.seen)
        measure(person, args.one[1], args.out, args.height, args.profile)
        return
    people = sorted(path.name for path in args.people.iterdir() if (path / "cams.npz").exists())[: args.limit]
    names = args.backbones.split(",")
    for person in people:
        for name in names:
            if not (args.out / person / f"{name}.json").exists():
                failed = subprocess.run([sys.executable, *sys.argv, "--one", person, name]).returncode
                if failed:
                    print(f"{person} {name}: failed ({failed})", file=sys.stderr, flush=True)
    text = table(people, names, args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
