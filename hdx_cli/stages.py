"""The stages that make an avatar: each loads from the run folder, calls one core function and saves. No maths, no printing.

photo -> ``observation`` -> ``body.npz`` -> ``coarse`` -> ``restored`` -> ``refined``; what is made of the avatar then is in
``outputs``. Heavy modules are imported where they are used, so that listing the commands stays quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import WeightsError
from .progress import Progress, Silent
from .run_folder import Made, RunFolder

if TYPE_CHECKING:
    import numpy as np

    from .avatars.base import Avatar
    from .camera import Cameras
    from .humanfixer.restorer import Restorer
    from .observation import Observation, Photo

AVATAR, ORBIT_VIEWS = "avatar.safetensors", 18
RESTORED_HEIGHT = 288  # rows of the views that are restored, unless the network takes more; they are two thirds as wide
# what makes up what the photo does not show: rules, a small network in the coarse fit, or that network and HumanFixer
RESTORERS = ("none", "completion", "humanfixer")
DEFAULT_RESTORER, DEFAULT_ROUNDS = "humanfixer", 1  # the best by measure on validation people
WEIGHTS = Path(__file__).with_name("humanfixer") / "humanfixer.safetensors"


@dataclass(frozen=True)
class Options:
    """What a person can ask of the stages up to the refined avatar; None leaves the choice to the stage.

    ``mask`` is a name inside the run folder.
    """

    person: int | None = None
    mask: str | None = None
    matting: str | None = None
    gender: str | None = None
    height_m: float | None = None
    build: str | None = None
    age: float | None = None
    focal_px: float | None = None
    focal_mm35: float | None = None
    gaussians: int | None = None
    iterations: int | None = None
    restorer: str | None = None
    rounds: int | None = None
    seed: int = 0

    @property
    def refines(self) -> bool:
        """Whether there is anything to refine with."""
        return (self.restorer or DEFAULT_RESTORER) == "humanfixer"

    @classmethod
    def remembered(cls, run: RunFolder, **changes: Any) -> Options:
        """The options the folder was last made with, with those of ``changes`` that are not None."""
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in run.options.items() if name in known}
        return cls(**{**kept, **{name: value for name, value in changes.items() if value is not None}})


def check(
    path: Path,
    overlay: Path | None = None,
    *,
    person: int | None = None,
    mask: Path | None = None,
    progress: Progress = Silent(),
) -> dict[str, Any]:
    """Look at a photo: ``suitable``, how many ``people``, which ``person`` would be taken, and the ``findings``.

    ``overlay`` is an image file to draw all that into.

    Raises:
        InputRejected: the photo or the mask cannot be read.
    """
    from .images import load_mask, load_photo, save_image
    from .preprocess import examine
    from .preprocess.check import draw_overlay
    from .run_folder import write_outside

    progress.start("look for people")
    photo = load_photo(path)
    if mask is not None:
        photo = replace(photo, alpha=load_mask(mask, photo.rgb.shape[:2]))
    detection, findings = examine(photo, person=person)
    if overlay is not None:
        write_outside(overlay, lambda partial: save_image(partial, draw_overlay(photo, detection, findings)))
    return {
        "photo": str(path),
        "suitable": not any(finding.severity == "reject" for finding in findings),
        "people": len(detection.people),
        "person": detection.chosen + 1 if detection.people else None,
        "findings": [asdict(finding) for finding in findings],
        **({"overlay": str(overlay)} if overlay else {}),
    }


def observe(run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None) -> Made:
    """photo -> ``observation/``: the person found, checked and cut out. ``source`` is only for messages.

    Raises:
        InputRejected: no usable person in the photo.
    """

    def write(folder: Path) -> dict[str, Any]:
        from .images import load_mask, load_photo, save_image
        from .preprocess import observe as observe_photo
        from .preprocess.check import draw_overlay
        from .run_files import save_observation

        shown = source or run.photo
        photo = load_photo(shown)
        mask = None if options.mask is None else load_mask(run.path / options.mask, photo.rgb.shape[:2])
        observation, findings, detection = observe_photo(
            photo,
            person=options.person,
            mask=mask,
            matting=options.matting or "default",
            name=str(shown),
            progress=progress,
        )
        for finding in findings:
            progress.warn(finding.code, finding.message)
        save_observation(folder, observation)
        save_image(folder / "overlay.jpg", draw_overlay(photo, detection, findings))
        return {"findings": [asdict(finding) for finding in findings]}

    config = {name: getattr(options, name) for name in ("person", "mask", "matting")}
    inputs = [run.state["photo"], *([options.mask] if options.mask else [])]
    return run.make("observation", config, inputs, write)


def fit_body(run: RunFolder, options: Options, progress: Progress = Silent()) -> Made:
    """``observation/`` -> ``body.npz``: the body, its pose and the camera."""

    def write(path: Path) -> dict[str, Any]:
        from .bodies import anny, fit
        from .run_files import load_observation, save_body_fit

        progress.start("body")
        observation = load_observation(run.path / "observation")
        priors = fit.BodyPriors(gender=options.gender, height_m=options.height_m, build=options.build, age=options.age)
        focal_px = _focal_px(run.photo, observation.photo, options)
        found = fit.fit_body(anny.load(), observation, priors, focal_px, options.seed)
        save_body_fit(path, found)
        return {"scores": found.scores}

    names = ("gender", "height_m", "build", "age", "focal_px", "focal_mm35", "seed")
    return run.make("body.npz", {name: getattr(options, name) for name in names}, ["observation"], write)


def fit_coarse(run: RunFolder, options: Options, progress: Progress = Silent()) -> Made:
    """``observation/`` and ``body.npz`` -> ``coarse/``: the avatar file, 18 views of it and ``report.json``."""

    completes = options.restorer != "none"

    def write(folder: Path) -> dict[str, Any]:
        from .avatars import explicit
        from .avatars.avatar_file import write_avatar
        from .avatars.turntable import seen_by_part, views_of
        from .bodies import anny
        from .run_files import load_body_fit, load_observation, save_views

        observation, fit = load_observation(run.path / "observation"), load_body_fit(run.path / "body.npz")
        chosen = {
            name: getattr(options, name) for name in ("gaussians", "iterations") if getattr(options, name) is not None
        }
        settings = explicit.Settings(**chosen, completion=completes)
        avatar = explicit.fit_coarse(observation, fit, anny.load(), settings, progress=progress, seed=options.seed)
        write_avatar(folder, avatar)
        progress.start("views", ORBIT_VIEWS)
        save_views(folder / "views", *views_of(avatar.gaussians(), fit.camera, ORBIT_VIEWS), progress)
        report = {"scores": avatar.scores, "confidence": seen_by_part(avatar), "gaussians": len(avatar.canonical)}
        _write_report(folder, report)
        return report

    config = {name: getattr(options, name) for name in ("gaussians", "iterations", "seed")} | {"completion": completes}
    return run.make("coarse", config, ["observation", "body.npz"], write)


def require_restorer() -> None:
    """Say at once, and not after minutes, what HumanFixer would lack.

    Raises:
        WeightsError: its weights are not there.
    """
    if not WEIGHTS.is_file():
        raise WeightsError(
            f"{WEIGHTS}: the weights of HumanFixer are missing",
            hint="add --restorer completion to do without, or reinstall hdx-cli",
        )


def restore(run: RunFolder, options: Options, progress: Progress = Silent(), restorer: Restorer | None = None) -> Made:
    """``coarse/`` -> ``restored/views``: what HumanFixer makes of the avatar's 18 views, view 0 being the photo.

    ``restorer`` takes the place of the one that comes with hdx.

    Raises:
        WeightsError: its weights are missing or damaged.
    """
    coarse = run.require("coarse", f"hdx fit-coarse {run.path}")

    def write(folder: Path) -> dict[str, Any]:
        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import closed_in
        from .camera import orbit_of
        from .run_files import load_body_fit, load_observation, save_views

        fixer = restorer or _restorer()
        avatar, observation = read_avatar(coarse), load_observation(run.path / "observation")
        camera = load_body_fit(run.path / "body.npz").camera
        height = max(RESTORED_HEIGHT, fixer.model.config.height) if restorer is None else RESTORED_HEIGHT
        window = closed_in(avatar.gaussians().means, camera, 2 * height // 3, height)
        cameras = orbit_of(window, ORBIT_VIEWS)
        pictures = _restored(fixer, avatar, observation, camera, cameras, None, options.seed, progress)
        progress.start("views", ORBIT_VIEWS)
        save_views(folder / "views", cameras, pictures, progress)
        return {"views": ORBIT_VIEWS, "rows": fixer.model.config.height if restorer is None else None}

    return run.make("restored", {"seed": options.seed}, ["observation", "body.npz", "coarse"], write)


def refine(run: RunFolder, options: Options, progress: Progress = Silent(), restorer: Restorer | None = None) -> Made:
    """``coarse/`` and ``restored/`` -> ``refined/``: the avatar fitted to its restored views, and ``report.json``.

    Raises:
        WeightsError: a second round needs HumanFixer, and its weights are missing or damaged.
    """
    coarse = run.require("coarse", f"hdx fit-coarse {run.path}")
    views = run.require("restored", f"hdx restore {run.path}") / "views"

    def write(folder: Path) -> dict[str, Any]:
        from .avatars import refine as refining
        from .avatars.avatar_file import read_avatar, write_avatar
        from .avatars.turntable import seen_by_part
        from .run_files import load_body_fit, load_observation, load_views

        settings = refining.RefineSettings()
        settings = replace(settings, sigmas=settings.sigmas[: options.rounds or DEFAULT_ROUNDS])
        fixer = restorer or (_restorer() if len(settings.sigmas) > 1 else None)
        observation, camera = load_observation(run.path / "observation"), load_body_fit(run.path / "body.npz").camera
        photo = refining.photo_views(camera, observation.foreground, observation.alpha, settings.max_side_px)
        cameras, pictures = load_views(views)
        rows = run.record("restored").get("rows")

        def restored(avatar: Avatar, turn: int) -> refining.Views:
            made = pictures if turn == 0 else _restored(
                fixer, avatar, observation, camera, cameras, settings.sigmas[turn], options.seed + turn, progress
            )  # fmt: skip
            return refining.restored_views(cameras, made, avatar, settings, rows)

        avatar, rounds = refining.refine_in_rounds(
            read_avatar(coarse), photo, restored, settings, progress, options.seed
        )
        if not rounds[0]["kept"]:
            progress.warn("W_NOT_REFINED", "the restored views did not make the avatar better; it stays as it was")
        write_avatar(folder, avatar)
        report = {"scores": avatar.scores, "confidence": seen_by_part(avatar), "rounds": rounds}
        _write_report(folder, report)
        return report

    config = {"rounds": options.rounds, "seed": options.seed}
    return run.make("refined", config, ["observation", "body.npz", "coarse", "restored"], write)


def coarse_of(
    run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None
) -> Iterator[tuple[str, Made]]:
    """Photo -> coarse avatar, one product after the other; the options are remembered for later stages."""
    run.remember({name: value for name, value in vars(options).items() if value is not None}, options.seed)
    yield "photo", observe(run, options, progress, source)
    yield "body", fit_body(run, options, progress)
    yield "avatar", fit_coarse(run, options, progress)


def refined_of(run: RunFolder, options: Options, progress: Progress = Silent()) -> Iterator[tuple[str, Made]]:
    """Coarse avatar -> restored views and refined avatar; nothing where the options do not refine."""
    if options.refines:
        yield "restored views", restore(run, options, progress)
        yield "refined avatar", refine(run, options, progress)


def avatar_of(
    run: RunFolder, options: Options, progress: Progress = Silent(), source: Path | None = None
) -> Iterator[tuple[str, Made]]:
    """Photo -> the best avatar that the options allow.

    Raises:
        WeightsError: HumanFixer is wanted and its weights are missing, told before any work.
    """
    if options.refines:
        require_restorer()
    yield from coarse_of(run, options, progress, source)
    yield from refined_of(run, options, progress)


def best_avatar(run: RunFolder) -> str:
    """The product that later stages take: ``refined`` where it is wanted and up to date, else ``coarse``.

    Raises:
        NothingToDo: there is none yet.
    """
    run.require("coarse", f"hdx fit-coarse {run.path}")
    return "refined" if Options.remembered(run).refines and run.is_current("refined") else "coarse"


def _restorer() -> Restorer:
    require_restorer()
    from .humanfixer.checkpoint import load_weights
    from .humanfixer.restorer import Restorer

    return Restorer(load_weights(WEIGHTS))


def _restored(
    restorer: Restorer, avatar: Avatar, observation: Observation, camera: Cameras, cameras: Cameras,
    sigma: float | None, seed: int, progress: Progress,
) -> np.ndarray:  # fmt: skip
    """What a restorer makes of an avatar's views, straight RGBA [C H W 4]; view 0 is the photo itself."""
    import torch

    from .avatars.turntable import straight, through_window, views_to_restore
    from .preprocess.face import face_crop

    rgb, alpha, seen = views_to_restore(avatar.gaussians(), avatar.visibility, cameras)
    photo_rgb, photo_alpha = through_window(observation.foreground, observation.alpha, camera, cameras[0])
    photo_rgb = photo_rgb * photo_alpha[..., None] + 1 - photo_alpha[..., None]
    crop = face_crop(observation)
    face = None if crop is None else torch.from_numpy(crop).float() / 255
    rgb, alpha = restorer(
        rgb, alpha, seen, photo_rgb, photo_alpha, face, sigma_start=sigma, seed=seed, progress=progress
    )
    return straight(torch.cat([photo_rgb[None], rgb[1:]]), torch.cat([photo_alpha[None], alpha[1:]]))


def _write_report(folder: Path, report: dict[str, Any]) -> None:
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _focal_px(file: Path, photo: Photo, options: Options) -> float | None:
    """Focal length in pixels of the working-size photo: from the options, else from EXIF, else None."""
    from PIL import Image

    from .images import FILM_DIAGONAL_MM

    height, width = photo.rgb.shape[:2]
    if options.focal_mm35 is not None:
        return options.focal_mm35 / FILM_DIAGONAL_MM * (width**2 + height**2) ** 0.5
    if options.focal_px is not None:
        with Image.open(file) as original:
            return options.focal_px * max(width, height) / max(original.size)
    return photo.focal_px
