"""The unseen side of avatars against true views: a table of methods, and pictures of what the numbers stand for.

    python tests/bench/bench_refine.py PEOPLE --out OUT [--runs RUNS] [--height 480] [--limit 16] [--stages rules,completion,refined]
    python tests/bench/bench_refine.py VALIDATION --out OUT_VAL --fit-controls     # writes OUT_VAL/controls.json
    python tests/bench/bench_refine.py PEOPLE --out OUT --controls OUT_VAL/controls.json

PEOPLE is laid out as for ``bench_avatar.py``, and so is the protocol: the photo is view 0 over a plain grey wall, its
focal length is known, mask, landmarks and body are estimated, the other 17 views are scored over white. Each score is
averaged over views 1-17 and then over people. ``--params`` has a folder per person with ``params.npz`` and
``meta.json`` of the generator (PEOPLE/../people/NAME_OF_PEOPLE unless told), which say where the head is and whether
it is bald.

Methods are avatars, named by their folder: RUNS/NNN/METHOD/avatar.safetensors and avatar.json, with the body fit in
RUNS/NNN/METHOD/body.npz or else RUNS/NNN/body.npz (a run folder of hdx is such a RUNS/NNN). What ``--stages`` names
and RUNS lacks is made by the functions of ``STAGES`` and kept there. ``--views NAME=DIR`` adds pictures
DIR/NNN/00.png .. 17.png through the true cameras, and 18.png for the loop gap. Controls need no training: the views
of one method blurred by a Gaussian (sigma in px of a 960 px high image), or by sums of Gaussians fitted by least
squares for front, side and back; both are chosen on VALIDATION people only.

Scores: PSNR over the frame and inside the union of both masks, SSIM, IoU, sharpness (1 = as much detail as the
truth), efficientnet-lite0 distance (lower is better; not LPIPS), backs of heads that are covered as in truth, share
of skin there (not of the bald; beside the truth's) and seam gap. See ``hdx_cli.training.evaluate``. Results are kept
in OUT/scores.jsonl, a line per person and method: an interrupted run goes on, and a method is scored again when its
avatar has changed. OUT/table.txt, OUT/grid.png and OUT/strips/ are written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does

import cv2  # noqa: E402
import numpy as np
import torch
from bench_avatar import load
from PIL import Image, ImageDraw, ImageFont

from hdx_cli import stages
from hdx_cli.avatars import backbones, explicit
from hdx_cli.avatars import refine as refining
from hdx_cli.avatars.avatar_file import read_avatar, read_description, write_avatar
from hdx_cli.avatars.base import Avatar
from hdx_cli.avatars.turntable import closed_in, samples_per_pixel
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import BodyFit, posed_vertices
from hdx_cli.bodies.fit import BodyPriors, fit_body, fit_rig, rig_of
from hdx_cli.camera import Cameras, orbit_of
from hdx_cli.humanfixer.checkpoint import load_weights
from hdx_cli.humanfixer.restorer import Restorer
from hdx_cli.observation import Observation, Photo
from hdx_cli.preprocess import observe
from hdx_cli.progress import Silent
from hdx_cli.rasterize import rasterize
from hdx_cli.run_files import load_body_fit, load_observation, save_body_fit, save_observation
from hdx_cli.training import evaluate
from hdx_cli.training.synthetic_people import truth as true_body

VERSION = 1  # of the scores; older lines of scores.jsonl are left aside
PHOTO, BACKS, SHOWN_VIEWS = 0, (8, 9, 10), (2, 5, 9, 13)
SIGMAS_PX = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)  # of the linear control, at 960 px
CELL_PX = 240
TYPICAL_HEAD_M = 0.155  # from the head's joint to the crown

Made = tuple[Avatar, BodyFit]
Views = tuple[torch.Tensor, torch.Tensor]  # rgb over white [V H W 3], alpha [V H W]


@dataclass(frozen=True)
class Person:
    """One person of a test set.

    Attributes:
        images: straight RGBA [H W 4], 18 views; view 0 is the photo's.
        truth: their cameras; the person stands on the world's y axis.
        run: where this person's avatars are kept.
        bald: whether nothing, not even a hat, covers the head.
        head: the head's joint [3], its upward and its forward direction [3], and metres from joint to crown, or None.
    """

    name: str
    images: list[np.ndarray]
    truth: Cameras
    run: Path
    bald: bool
    head: tuple[np.ndarray, np.ndarray, np.ndarray, float] | None

    def photo(self) -> Photo:
        """View 0 over a plain grey wall, as somebody's camera took it."""
        image = self.images[PHOTO]
        wall = np.linspace(0.72, 0.82, image.shape[0], dtype=np.float32)[:, None, None]
        return Photo(image[..., :3] * image[..., 3:] + wall * (1 - image[..., 3:]))


# ----------------------------------------------------------------------------------------------------------- avatars


body_model = cache(anny.load)


def restored_and_refined(coarse: Avatar, observation: Observation, fit: BodyFit) -> tuple[Avatar, list[dict]]:
    """What ``hdx restore`` and ``hdx refine`` make of a coarse avatar, and the scores of the rounds."""
    fixer, rows = Restorer(load_weights()), stages.RESTORED_HEIGHT
    around = orbit_of(closed_in(coarse.gaussians().means, fit.camera, 2 * rows // 3, rows), stages.ORBIT_VIEWS)
    pictures = stages.restored_pictures(fixer, coarse, observation, fit.camera, around, None, 0, Silent())
    settings = refining.RefineSettings()
    settings = replace(settings, sigmas=settings.sigmas[: stages.DEFAULT_ROUNDS])
    photo = refining.photo_views(fit.camera, observation.foreground, observation.alpha, settings.max_side_px)
    views = refining.restored_views(around, pictures, coarse, settings, fixer.model.config.height)
    return refining.refine_in_rounds(coarse, photo, lambda avatar, turn: views, settings, fit=backbones.refiner(coarse))


def observed(person: Person) -> tuple[Observation, BodyFit]:
    """What preprocessing and the body fit make of the photo, kept in the person's run folder as hdx keeps it."""
    photo, body = person.run / "observation", person.run / "body.npz"
    if not body.exists():
        person.run.mkdir(parents=True, exist_ok=True)
        observation, _, _ = observe(person.photo(), name=person.name)
        fit = fit_body(body_model(), observation, focal_px=float(person.truth.Ks[PHOTO, 0, 0]))
        photo.mkdir(exist_ok=True)
        save_observation(photo, observation)
        save_body_fit(body, fit)
    return load_observation(photo), load_body_fit(body)


def make_rules(person: Person, made: dict[str, Made]) -> Made:
    """A_c with nothing that was trained here: the body from landmarks alone, its far side by rules."""
    observation, _ = observed(person)
    rig = replace(rig_of(body_model()), lifting=None)
    fit = fit_rig(rig, observation, BodyPriors(), focal_px=float(person.truth.Ks[PHOTO, 0, 0]))[0]
    return explicit.fit_coarse(observation, fit, body_model(), explicit.Settings(completion=False)), fit


def make_completion(person: Person, made: dict[str, Made]) -> Made:
    """A_c as ``hdx fit-coarse`` makes it, with the bundled networks for depth and for the far side."""
    observation, fit = observed(person)
    return explicit.fit_coarse(observation, fit, body_model(), explicit.Settings(completion=True)), fit


def make_refined(person: Person, made: dict[str, Made]) -> Made:
    """The avatar of ``make_completion`` after ``hdx restore`` and ``hdx refine`` with the bundled HumanFixer."""
    coarse, fit = made["completion"]
    observation, _ = observed(person)
    return restored_and_refined(coarse, observation, fit)[0], fit


def make_oracle(person: Person, made: dict[str, Made]) -> Made:
    """The first avatar made, refined on the true views at half size: what the restorer could reach at best."""
    from hdx_cli.avatars.refine import Views as Seen
    from hdx_cli.avatars.refine import refine

    avatar, fit = next(iter(made.values()))
    observation, _ = observed(person)
    alpha = torch.from_numpy(observation.alpha)[None]
    photo = Seen(fit.camera, torch.from_numpy(observation.foreground)[None], alpha, torch.ones_like(alpha))
    height = person.truth.height // 2
    rgb, alpha = over_white(person.images, height)
    straight = ((rgb - 1 + alpha[..., None]) / alpha.clamp(min=1e-4)[..., None]).clamp(0, 1)
    cameras = at_height(true_cameras(person.truth, fit), height)
    others = Seen(cameras[1:], straight[1:].contiguous(), alpha[1:].contiguous(), torch.ones_like(alpha[1:]))
    return refine(avatar, photo, others), fit


# How a method's avatar is made, from the person and what earlier stages made. An avatar that lies in the run folder
# already is not made again.
STAGES: dict[str, Callable[[Person, dict[str, Made]], Made]] = {
    "rules": make_rules,
    "completion": make_completion,
    "refined": make_refined,
    "oracle": make_oracle,
}


def avatars_of(person: Person, stages: list[str]) -> dict[str, Made]:
    """A person's avatars: those that ``stages`` names, in that order and made where missing, then others kept."""
    there = kept(person.run)
    made: dict[str, Made] = {}
    for stage in stages:
        if stage in there:
            made[stage] = read_made(person.run, stage)
        else:
            started = time.process_time()
            avatar, fit = made[stage] = STAGES[stage](person, made)
            folder = person.run / stage
            folder.mkdir(parents=True, exist_ok=True)
            save_body_fit(folder / "body.npz", fit)
            write_avatar(folder, avatar)
            print(f"{person.name}: made {stage}, {time.process_time() - started:.1f} CPU s", flush=True)
    return made | {name: read_made(person.run, name) for name in there if name not in made}


def kept(run: Path) -> list[str]:
    """Names of the avatars in a run folder."""
    return sorted(path.parent.name for path in run.glob("*/avatar.json") if path.with_suffix(".safetensors").exists())


def read_made(run: Path, name: str) -> Made:
    """One avatar of a run folder and the body fit that it was made with."""
    own = run / name / "body.npz"
    return read_avatar(run / name), load_body_fit(own if own.exists() else run / "body.npz")


def true_cameras(truth: Cameras, fit: BodyFit) -> Cameras:
    """The true cameras [18] in the world of an avatar with this body fit."""
    # the renders turn about the mean of the body's vertices
    centre = torch.from_numpy(posed_vertices(body_model(), fit.body, fit.pose).mean(0)).float()
    true_centre = torch.tensor([0.0, float(centre[1]), 0.0])
    return evaluate.true_cameras_in_avatar_world(truth, fit.camera, true_centre, centre)


# ------------------------------------------------------------------------------------------------------------- views


def at_height(cameras: Cameras, height: int) -> Cameras:
    scale = height / cameras.height
    return cameras if scale == 1 else cameras.resampled(scale, 0, 0, round(cameras.width * scale), height)


def over_white(images: list[np.ndarray], height: int) -> Views:
    """Straight RGBA pictures at another height (area averages of what is premultiplied), over white."""
    rgb, alpha = [], []
    for image in images:
        premultiplied = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=2)
        if image.shape[0] != height:
            size = (round(image.shape[1] * height / image.shape[0]), height)
            premultiplied = cv2.resize(premultiplied, size, interpolation=cv2.INTER_AREA)
        rgb.append(torch.from_numpy(premultiplied[..., :3] + 1 - premultiplied[..., 3:]))
        alpha.append(torch.from_numpy(premultiplied[..., 3].copy()))
    return torch.stack(rgb), torch.stack(alpha)


def rendered(person: Person, made: Made, height: int) -> Views:
    avatar, fit = made
    gaussians, cameras = avatar.gaussians(), at_height(true_cameras(person.truth, fit), height)
    samples = samples_per_pixel(height)  # as all pictures that a person sees
    rgb, alpha = [], []
    with torch.no_grad():
        for view in range(len(cameras)):
            image = rasterize(gaussians, cameras[view], background=torch.ones(3), supersample=samples)
            rgb.append(image.rgb[0].clamp(0, 1))
            alpha.append(image.alpha[0])
    return torch.stack(rgb), torch.stack(alpha)


def blurred_views(views: Views, sigma_px: float) -> Views:
    """``sigma_px`` at a height of 960."""
    sigma_px *= views[0].shape[1] / 960
    rgb, alpha = zip(*(evaluate.blurred(*view, sigma_px) for view in zip(*views, strict=True)), strict=True)
    return torch.stack(rgb), torch.stack(alpha)


def stacks(views: Views, sigmas_px: list[float]) -> Iterator[torch.Tensor]:
    scaled = tuple(sigma * views[0].shape[1] / 960 for sigma in sigmas_px)
    return (evaluate.blur_stack(*view, scaled) for view in zip(*views, strict=True))


def bin_of(view: int) -> str:
    sides = evaluate.sides_of_orbit(18)
    return next((side for side in ("front", "side", "back") if sides[side][view]), "front")


def linear_views(views: Views, controls: dict) -> Views:
    mixed = [evaluate.combined(stack, np.array(controls["weights"][bin_of(view)]))
             for view, stack in enumerate(stacks(views, controls["sigmas_px"]))]  # fmt: skip
    rgb, alpha = zip(*mixed, strict=True)
    return torch.stack(rgb), torch.stack(alpha)


# ------------------------------------------------------------------------------------------------------------ scores


def head_regions(person: Person, truth: Views, height: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Pixels of the upper back of the head in each view of ``BACKS``, and of the face's skin in the photo.

    From the true head where it is known: a disc over the skull above its joint, and a small one about the mouth, where
    there is neither hair nor glasses. Otherwise the upper 9 of the highest 13 % of the true mask, and the middle of the
    lower 4.
    """
    cameras, alpha = at_height(person.truth, height), truth[1].numpy() > 0.5
    if person.head is not None:
        joint, up, forward, size = person.head
        unit = size / TYPICAL_HEAD_M
        backs = {}
        for view in BACKS:
            above = np.arange(height)[:, None] < float(cameras[view].project(_point(joint))[0][0, 0, 1])
            backs[view] = evaluate.disc(cameras[view], joint + 0.075 * unit * up, 0.085 * unit) & above
        mouth = joint + unit * (0.09 * forward - 0.03 * up)
        return backs, evaluate.disc(cameras[PHOTO], mouth, 0.028 * unit) & alpha[PHOTO]
    bands = {}
    for view in (PHOTO, *BACKS):
        rows = np.nonzero(alpha[view].any(1))[0]
        share = (np.arange(height) - rows[0])[:, None] / (rows[-1] - rows[0])
        low, high = (0.09, 0.125) if view == PHOTO else (0.0, 0.09)
        bands[view] = (share >= low) & (share < high) & alpha[view]
    columns = np.nonzero(bands[PHOTO].any(0))[0]
    quarter = (columns[-1] - columns[0]) / 4
    inner = (np.arange(alpha.shape[2]) > columns[0] + quarter) & (np.arange(alpha.shape[2]) < columns[-1] - quarter)
    return {view: bands[view] for view in BACKS}, bands[PHOTO] & inner[None]


def _point(position: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(position, np.float32))[None]


def head_scores(person: Person, views: Views, truth: Views) -> dict[str, float]:
    backs, face = head_regions(person, truth, truth[0].shape[1])
    pixels = []
    for rgb, alpha in (views, truth):
        inside = {view: region & (alpha[view].numpy() > 0.9) for view, region in backs.items()}
        pixels.append(np.concatenate([rgb[view].numpy()[chosen] for view, chosen in inside.items()]))
    verdict = evaluate.head_back_verdict(*pixels, truth[0][PHOTO].numpy()[face], person.bald)
    return {name: round(value, 4) for name, value in verdict.items()} | {"bald": float(person.bald)}


def scores_of(
    person: Person, views: Views, truth: Views, seen: Callable[[torch.Tensor, int], list] | None, true_seen: list[list]
) -> dict:
    """A method's line: scores per view, of the head, of the seam. ``seen`` gives a network's features of a view."""
    per_view = []
    for view in range(len(truth[0])):
        pair = (views[0][view], views[1][view], truth[0][view], truth[1][view])
        scores = evaluate.view_scores(*pair) | {"sharpness": evaluate.sharpness_ratio(*pair)}
        if seen:
            scores["perceptual"] = evaluate.feature_distance(seen(views[0][view], view), true_seen[view])
        per_view.append({name: round(value, 5) for name, value in scores.items()})
    return {
        "views": per_view,
        "head": head_scores(person, views, truth),
        "seam_gap_db": evaluate.seam_gap_db(views[0]),
        "true_seam_gap_db": evaluate.seam_gap_db(truth[0]),
    }


# ----------------------------------------------------------------------------------------------------------- a person


def load_person(folder: Path, params: Path, runs: Path) -> Person:
    images, truth = load(folder)
    bald, head = False, None
    if (params / "meta.json").exists():
        outfit = json.loads((params / "meta.json").read_bytes())["outfit"]
        bald = outfit.get("hair") == "bald" and not outfit.get("hat")
    if (params / "params.npz").exists():
        with np.load(params / "params.npz") as archive:
            index = archive["bone_labels"].tolist().index("head")
        rotations, joints, vertices = true_body(params / "params.npz")
        vertices, joint, (_, up, forward) = vertices.copy(), joints[index].copy(), rotations[index].T
        middle = vertices.mean(0) * [1, 0, 1]  # the renders turn about it
        beside = vertices - joint
        along = beside @ up
        near = np.linalg.norm(beside - along[:, None] * up, axis=1) < 0.12
        head = (joint - middle, up, forward, float(along[near & (along < 0.3)].max()))
    return Person(folder.name, images, truth, runs / folder.name, bald, head)


def methods_of(person: Person, args: argparse.Namespace, controls: dict) -> dict[str, str]:
    """Every method to score and what its result depends on."""
    sources = {name: read_description(person.run / name)["sha256"] for name in kept(person.run)}
    if args.only:
        sources = {name: source for name, source in sources.items() if name in {*args.only, args.base}}
    if base := sources.get(args.base):
        sources |= {f"{args.base} blur {sigma:g}": f"{base} {sigma:g}" for sigma in args.blurs}
        if controls:
            weights = json.dumps([controls["sigmas_px"], controls["weights"]])
            sources[f"{args.base} linear"] = f"{base} {hashlib.sha256(weights.encode()).hexdigest()}"
    for name, folder in args.views:
        pictures = sorted((folder / person.name).glob("[0-9][0-9].png"))
        if len(pictures) >= 18:
            sources[name] = hashlib.sha256(b"".join(path.read_bytes() for path in pictures)).hexdigest()
    return sources


def score_person(
    person: Person, args: argparse.Namespace, controls: dict, rows: dict, network: Callable | None
) -> None:
    avatars: dict[str, Made] = {}
    if not set(args.stages) <= set(kept(person.run)):
        avatars = avatars_of(person, args.stages)
    due = {name: source for name, source in methods_of(person, args, controls).items()
           if not is_known(rows, person.name, name, source, args)}  # fmt: skip
    needs_equations = args.fit_controls and not is_known(
        rows, person.name, "equations", read_description(person.run / args.base)["sha256"], args
    )
    if not due and not needs_equations:
        return
    height, views_by_name = args.height, {}

    def views_of(name: str) -> Views:
        if name in dict(args.views):
            files = [dict(args.views)[name] / person.name / f"{view:02d}.png" for view in range(18)]
            return over_white([_rgba(path) for path in files], height)
        base = f"{args.base} "
        if name.startswith(f"{base}blur "):
            return blurred_views(views_of(args.base), float(name.split()[-1]))
        if name == f"{base}linear":
            return linear_views(views_of(args.base), controls)
        if name not in views_by_name:
            views_by_name.clear()  # one set of views at a time, besides what is being scored
            views_by_name[name] = rendered(person, avatars.get(name) or read_made(person.run, name), height)
        return views_by_name[name]

    truth = over_white(person.images, height)
    boxes = [evaluate.person_box(alpha) for alpha in truth[1]]

    def seen(image: torch.Tensor, view: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return network(evaluate.person_crop(image, boxes[view]))

    true_seen = [seen(image, view) for view, image in enumerate(truth[0])] if network and due else []
    save_strip(args.out, person, "truth", truth, height)
    own = [
        name for name in due if name.split(" ")[0] != args.base
    ]  # the base's controls follow it, as it is rendered once
    for name in [*sorted(name for name in due if name not in own), *own]:
        views = views_of(name)
        row = scores_of(person, views, truth, seen if network else None, true_seen)
        if name in dict(args.views) and (last := dict(args.views)[name] / person.name / "18.png").exists():
            closing = over_white([_rgba(last)], height)[0]
            row["loop_gap_db"] = evaluate.loop_gap_db(torch.cat([views[0], closing]))
        save_strip(args.out, person, name, views, height)
        remember(rows, args, person.name, name, due[name], row)
        mean = evaluate.by_side(row["views"])
        print(
            f"{person.name}: {name:24} union "
            + ", ".join(f"{side} {value['psnr_union_db']:.2f}" for side, value in mean.items())
            + f"; sharp {mean['all']['sharpness']:.2f}; head {'passes' if row['head']['passed'] else 'FAILS'}",
            flush=True,
        )
    if needs_equations:
        sums = {side: (np.zeros((len(SIGMAS_PX),) * 2), np.zeros(len(SIGMAS_PX))) for side in ("front", "side", "back")}
        for view, stack in enumerate(stacks(views_of(args.base), list(SIGMAS_PX))):
            if view != PHOTO:
                parts = evaluate.normal_equations(stack, truth[0][view], truth[1][view])
                for total, part in zip(sums[bin_of(view)], parts, strict=True):
                    total += part
        sums = {side: [a.tolist(), b.tolist()] for side, (a, b) in sums.items()}
        source = read_description(person.run / args.base)["sha256"]
        remember(rows, args, person.name, "equations", source, {"sums": sums})


def _rgba(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"), np.float32) / 255


# ------------------------------------------------------------------------------------------------------- what is kept


def read_rows(path: Path) -> dict[tuple[str, str, int], dict]:
    """Kept results by person, method and height; later lines win, a line cut short by an interruption is left aside."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            if row["version"] == VERSION:
                rows[row["person"], row["method"], row["height"]] = row
        except (ValueError, KeyError):
            continue
    return rows


def is_known(rows: dict, person: str, method: str, source: str, args: argparse.Namespace) -> bool:
    row = rows.get((person, method, args.height))
    if row is None or row["source"] != source:
        return False
    return "views" not in row or args.no_perceptual or "perceptual" in row["views"][0]


def remember(rows: dict, args: argparse.Namespace, person: str, method: str, source: str, row: dict) -> None:
    key = {"version": VERSION, "person": person, "method": method, "height": args.height, "source": source}
    rows[person, method, args.height] = key | row
    with (args.out / "scores.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(key | row) + "\n")


def fit_controls(people: list[str], rows: dict, args: argparse.Namespace) -> dict:
    """The best blur (by PSNR in the union) and the linear weights, of these people."""
    weights = {}
    for side in ("front", "side", "back"):
        parts = [rows[person, "equations", args.height]["sums"][side] for person in people]
        a, b = sum(np.array(part[0]) for part in parts), sum(np.array(part[1]) for part in parts)
        weights[side] = evaluate.linear_weights(a, b).tolist()

    by_blur = {}
    for sigma in args.blurs:
        of = [rows[person, f"{args.base} blur {sigma:g}", args.height]["views"] for person in people]
        means = [evaluate.by_side(views)["all"] for views in of]
        by_blur[f"{sigma:g}"] = {name: float(np.mean([mean[name] for mean in means])) for name in means[0]}
    best = max(by_blur, key=lambda sigma: by_blur[sigma]["psnr_union_db"])
    return {
        "base": args.base,
        "people": len(people),
        "height": args.height,
        "blur_px": float(best),
        "by_blur": by_blur,
        "sigmas_px": list(SIGMAS_PX),
        "weights": weights,
    }


# -------------------------------------------------------------------------------------------------- table and pictures


def table(people: list[str], methods: list[str], rows: dict, args: argparse.Namespace) -> str:
    """Rows are methods, scored on the people who have all of them."""
    common = [person for person in people if all((person, method, args.height) in rows for method in methods)]
    if not common:
        return "nobody has all methods yet"
    of = {method: [rows[person, method, args.height] for person in common] for method in methods}
    sides = {method: [evaluate.by_side(row["views"]) for row in of[method]] for method in methods}

    def mean(method: str, side: str, score: str) -> float:
        return float(np.mean([person[side].get(score, np.nan) for person in sides[method]]))

    width = max(len(method) for method in methods) + 2
    true_seam = np.mean([row["true_seam_gap_db"] for row in of[methods[0]]])
    lines = [
        f"{len(common)} people, {args.height} px high, views 1-17: mean of views, then of people. Distance is "
        f"{evaluate.PERCEPTUAL_NAME}. Seam of the true views {true_seam:.2f} dB.",
        f"{'':{width}}{'all views: PSNR':>15}{'':40}{'PSNR in the union':>19}{'sharp':>8}{'head from behind':>22}"
        f"{'':7}  {'union dB over ' + args.base + ' [95 %],':>28}",
        f"{'':{width}}{'full':>7}{'union':>8}{'SSIM':>8}{'IoU':>8}{'sharp':>8}{'distance':>10}{'':2}"
        f"{'front':>9}{'side':>7}{'back':>7}{'back':>8}{'covered':>9}{'skin':>6}{'truth':>7}{'seam':>7}"
        f"  {'better on':>28}",
    ]
    for method in methods:
        heads = [row["head"] for row in of[method]]
        seams = np.mean([row["seam_gap_db"] for row in of[method]])
        line = f"{method:{width}}" + "".join(
            f"{mean(method, 'all', score):{spec}}"
            for score, spec in (("psnr_full_db", "7.2f"), ("psnr_union_db", "8.2f"), ("ssim", "8.3f"), ("iou", "8.3f"),
                                ("sharpness", "8.2f"), ("perceptual", "10.3f"))
        )  # fmt: skip
        line += f"{'':4}" + "".join(f"{mean(method, side, 'psnr_union_db'):7.2f}" for side in ("front", "side", "back"))
        line += f"{mean(method, 'back', 'sharpness'):8.2f}"
        passed = f"{sum(head['passed'] for head in heads):.0f}/{len(heads)}"
        haired = [head for head in heads if not head["bald"]]
        skin, true_skin = (
            np.mean([head[score] for head in haired]) if haired else np.nan
            for score in ("skin_share", "true_skin_share")
        )
        line += f"{passed:>9}{skin:6.2f}{true_skin:7.2f}"
        line += f"{seams:7.2f}"
        if args.base in methods and method != args.base:
            gains = np.array([person["all"]["psnr_union_db"] - base["all"]["psnr_union_db"]
                              for person, base in zip(sides[method], sides[args.base], strict=True)])  # fmt: skip
            low, high = evaluate.bootstrap_interval(gains)
            gain = f"{gains.mean():+.2f} [{low:+.2f} {high:+.2f}] {(gains > 0).sum()}/{len(gains)}"
            line += f"  {gain:>28}"
        loops = [row["loop_gap_db"] for row in of[method] if "loop_gap_db" in row]
        lines.append(line + (f"  loop {np.mean(loops):.2f} dB" if loops else ""))
    return "\n".join(lines)


def save_strip(out: Path, person: Person, method: str, views: Views, height: int) -> None:
    """Pictures of one person by one method: ``SHOWN_VIEWS``, and the head in view 9."""
    frames = [_cell(views[0][view].numpy()) for view in SHOWN_VIEWS]
    rows = np.nonzero((_truth_alpha(person, height)).any(1))[0]
    head_px = round(0.19 * (rows[-1] - rows[0]))
    columns = np.nonzero(_truth_alpha(person, height)[rows[0] : rows[0] + head_px].any(0))[0]
    x, y = (columns[0] + columns[-1]) // 2, max(0, rows[0] - head_px // 8)
    x0 = int(np.clip(x - head_px // 2, 0, views[0].shape[2] - head_px))
    head = views[0][9].numpy()[y : y + head_px, x0 : x0 + head_px]
    frames.append(cv2.resize(head, (CELL_PX, CELL_PX), interpolation=cv2.INTER_CUBIC))
    _save(strip_path(out, person.name, method), np.concatenate(frames, axis=1))
    if method == "truth":
        _save(strip_path(out, person.name, "photo"), _cell(person.photo().rgb))


def _truth_alpha(person: Person, height: int) -> np.ndarray:
    image = person.images[9][..., 3]
    return (
        cv2.resize(image, (round(image.shape[1] * height / image.shape[0]), height), interpolation=cv2.INTER_AREA) > 0.5
    )


def _cell(image: np.ndarray) -> np.ndarray:
    """The middle 70 % of a view's columns, ``CELL_PX`` high."""
    edge = round(0.15 * image.shape[1])
    image = image[:, edge : image.shape[1] - edge]
    size = (round(0.7 * 2 / 3 * CELL_PX), CELL_PX)
    return cv2.resize(np.ascontiguousarray(image, np.float32), size, interpolation=cv2.INTER_AREA)


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(path)


def strip_path(out: Path, person: str, method: str) -> Path:
    return out / "strips" / f"{person}-{method.replace(' ', '-').replace('/', '-')}.png"


def save_grid(path: Path, out: Path, people: list[str], methods: list[str]) -> None:
    """A row per person: the photo, the truth and every method at ``SHOWN_VIEWS`` and with the head from behind."""
    font = ImageFont.load_default(16)
    rows, gap = [], 8
    for person in people:
        strips = [np.asarray(Image.open(strip_path(out, person, name)).convert("RGB"))
                  for name in ("photo", "truth", *methods) if strip_path(out, person, name).exists()]  # fmt: skip
        if len(strips) == 2 + len(methods):
            rows.append((person, strips))
    if not rows:
        return
    widths = [strip.shape[1] for strip in rows[0][1]]
    picture = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) - 1), 24 + len(rows) * (CELL_PX + gap)), (200, 200, 200)
    )
    draw, x = ImageDraw.Draw(picture), 0
    for column, name in enumerate(("photo", "truth", *methods)):
        title = name if column == 0 else f"{name}: views {', '.join(map(str, SHOWN_VIEWS))}; head in view 9"
        draw.text((x + 4, 3), title, fill=(0, 0, 0), font=font)
        for row, (person, strips) in enumerate(rows):
            y = 24 + row * (CELL_PX + gap)
            picture.paste(Image.fromarray(strips[column]), (x, y))
            if column == 0:
                draw.text((x + 4, y + 3), person, fill=(0, 0, 0), font=font)
        x += widths[column] + gap
    picture.save(path)


# --------------------------------------------------------------------------------------------------------------- main


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="scores, table and pictures")
    parser.add_argument("--runs", type=Path, help="avatars, RUNS/NNN/METHOD; OUT/runs unless told")
    parser.add_argument("--params", type=Path, help="the generator's folder of the same people")
    parser.add_argument("--stages", default="rules", help=f"avatars to make where missing, of: {', '.join(STAGES)}")
    parser.add_argument("--only", default="", help="score these avatars (and the base) of RUNS; all unless told")
    parser.add_argument("--base", default="rules", help="what is blurred, and what gains are counted from")
    parser.add_argument("--blurs", default="", help="sigmas of the blur control, px at a height of 960: 1,2,4")
    parser.add_argument("--fit-controls", action="store_true", help="choose blur and linear control on these people")
    parser.add_argument("--controls", type=Path, help="controls.json of validation people")
    parser.add_argument(
        "--views", action="append", default=[], metavar="NAME=DIR", help="pictures through true cameras"
    )
    parser.add_argument("--show", default="", help="methods in the picture; all but the controls unless told")
    parser.add_argument(
        "--height", type=int, default=960, help="of the scored views, px; 480 takes a quarter of the time"
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--no-perceptual", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.runs = args.runs or args.out / "runs"
    args.params = args.params or args.people.resolve().parent / "people" / args.people.name
    args.stages, args.only, args.show = (
        [s for s in value.split(",") if s] for value in (args.stages, args.only, args.show)
    )
    args.blurs = [float(sigma) for sigma in args.blurs.split(",") if sigma]
    args.views = [(value.split("=", 1)[0], Path(value.split("=", 1)[1])) for value in args.views]
    if args.fit_controls and not args.blurs:
        args.blurs = [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0]
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    controls = json.loads(args.controls.read_bytes()) if args.controls else {}
    if controls:
        args.blurs = sorted({*args.blurs, controls["blur_px"]})
    network = None if args.no_perceptual else evaluate.perceptual_network()
    rows, people, methods = read_rows(args.out / "scores.jsonl"), [], {}
    folders = sorted(p for p in args.people.iterdir() if (p / "cams.npz").exists())
    for folder in folders[args.first : args.first + args.limit]:
        person = load_person(folder, args.params / folder.name, args.runs)
        score_person(person, args, controls, rows, network)
        people.append(person.name)
        methods |= methods_of(person, args, controls)
    is_control = {name: name.startswith(f"{args.base} ") for name in methods}
    ordered = sorted(methods, key=lambda name: (name != args.base, not is_control[name], name.split(" blur ")[0],
                     float(name.split(" blur ")[1]) if " blur " in name else 0.0))  # fmt: skip
    text = table(people, ordered, rows, args)
    print("\n" + text)
    (args.out / "table.txt").write_text(text + "\n", encoding="utf-8")
    save_grid(args.out / "grid.png", args.out, people, args.show or [name for name in ordered if not is_control[name]])
    if args.fit_controls:
        chosen = fit_controls(people, rows, args)
        (args.out / "controls.json").write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
        print(f"\nbest blur {chosen['blur_px']:g} px; {args.out / 'controls.json'} written")


if __name__ == "__main__":
    main()
