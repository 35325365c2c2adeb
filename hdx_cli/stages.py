"""The stages: each loads from the run folder, calls one core function and saves. No maths, no printing.

photo -> ``observation`` -> ``body.npz`` -> ``coarse`` -> ``exports/*``. Heavy modules are imported where they are used, so
that listing the commands stays quick.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .progress import Progress, Silent
from .run_folder import Made, RunFolder

if TYPE_CHECKING:
    from .observation import Photo

AVATAR, PLY, PREVIEW = "coarse/avatar.safetensors", "exports/avatar.ply", "preview.png"
SHEET_VIEWS, ORBIT_VIEWS = 8, 18


@dataclass(frozen=True)
class Options:
    """What a person can ask of the stages up to the coarse avatar; None leaves the choice to the stage.

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
    seed: int = 0

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

    def write(folder: Path) -> dict[str, Any]:
        from .avatars import explicit
        from .avatars.avatar_file import confidence_by_part, write_avatar
        from .avatars.turntable import views_of
        from .bodies import anny
        from .run_files import load_body_fit, load_observation, save_views

        observation, fit = load_observation(run.path / "observation"), load_body_fit(run.path / "body.npz")
        chosen = {
            name: getattr(options, name) for name in ("gaussians", "iterations") if getattr(options, name) is not None
        }
        avatar = explicit.fit_coarse(
            observation, fit, anny.load(), explicit.Settings(**chosen), progress=progress, seed=options.seed
        )
        write_avatar(folder, avatar)
        progress.start("views", ORBIT_VIEWS)
        save_views(folder / "views", *views_of(avatar.gaussians(), fit.camera, ORBIT_VIEWS), progress)
        report = {"scores": avatar.scores, "confidence": confidence_by_part(avatar), "gaussians": len(avatar.canonical)}
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return report

    config = {name: getattr(options, name) for name in ("gaussians", "iterations", "seed")}
    return run.make("coarse", config, ["observation", "body.npz"], write)


def export_ply(run: RunFolder, path: Path | None = None, *, up: str = "y", sh_degree: int | None = None) -> Made:
    """``coarse/`` -> the avatar in the photo's pose as a splatting .ply, in ``exports/`` or at ``path``."""
    coarse = run.require("coarse", f"hdx fit-coarse {run.path}")

    def write(partial: Path) -> None:
        from .avatars.avatar_file import read_avatar
        from .export.ply import write_ply

        write_ply(partial, read_avatar(coarse).gaussians(), sh_degree=sh_degree, up=up)

    return _export(run, PLY, path, {"up": up, "sh_degree": sh_degree}, write)


@dataclass(frozen=True)
class Film:
    """How a turntable is filmed: one turn in ``seconds``; ``background`` is #rrggbb or transparent."""

    seconds: float = 5.0
    fps: float = 24.0
    size: tuple[int, int] = (480, 720)
    background: str = "#ffffff"
    elevation_deg: float = 0.0
    format: str = "mp4"


def render(
    run: RunFolder, film: Film = Film(), path: Path | None = None, progress: Progress = Silent(), device: str = "cpu"
) -> Made:
    """``coarse/`` -> a film of one turn round the avatar, in ``exports/`` or at ``path``.

    Raises:
        UsageError: a transparent background in a format without transparency.
    """
    coarse = run.require("coarse", f"hdx fit-coarse {run.path}")
    from .export.video import WITH_ALPHA

    if film.background == "transparent" and film.format not in WITH_ALPHA:
        raise UsageError(
            f"--background transparent: {film.format} has no transparency",
            hint=f"hdx render {run.path} --background transparent --format webm",
        )

    def write(partial: Path) -> dict[str, Any]:
        import math

        import torch

        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import cameras_round, frames
        from .export.video import write_video

        count = max(1, round(film.seconds * film.fps))
        progress.start("turntable", count)
        gaussians = read_avatar(coarse).gaussians().to(device)
        azimuths = torch.arange(count) * (2 * math.pi / count)
        cameras = cameras_round(gaussians, *film.size, azimuths, math.radians(film.elevation_deg))
        backdrop = None if film.background == "transparent" else torch.tensor(_rgb(film.background))

        def counted():
            for frame in frames(gaussians, cameras, backdrop):
                yield frame
                progress.advance()

        write_video(partial, counted(), size=film.size, fps=film.fps, format=film.format)
        return {"frames": count}

    name = "exports/turntable" + ("-frames" if film.format == "png" else f".{film.format}")
    return _export(run, name, path, asdict(film), write)


def preview(run: RunFolder, device: str = "cpu") -> Made:
    """``observation/`` and ``coarse/`` -> ``preview.png``: the photo, eight views and the scores."""
    coarse = run.require("coarse", f"hdx fit-coarse {run.path}")

    def write(partial: Path) -> None:
        import math

        import numpy as np
        import torch

        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import cameras_round, frames
        from .export.sheet import contact_sheet
        from .run_files import load_observation

        gaussians = read_avatar(coarse).gaussians().to(device)
        azimuths = torch.arange(SHEET_VIEWS) * (2 * math.pi / SHEET_VIEWS)
        cameras = cameras_round(gaussians, 320, 480, azimuths)
        views = np.stack(list(frames(gaussians, cameras, torch.ones(3)))).astype(np.float32) / 255
        titles = [f"{round(math.degrees(azimuth))}\N{DEGREE SIGN}" for azimuth in azimuths]
        photo = load_observation(run.path / "observation").photo.rgb
        contact_sheet(photo, views, titles, shown_scores(run)).save(partial)

    return run.make(PREVIEW, {"views": SHEET_VIEWS}, ["observation", "coarse"], write)


def shown_scores(run: RunFolder) -> list[tuple[str, str]]:
    """The scores of the coarse avatar as names and values for people; unknown ones are left out."""
    record = run.record("coarse")
    scores = record.get("scores", {})
    known = [
        ("front PSNR", "front_psnr_db", "{:.1f} dB"),
        ("silhouette IoU", "silhouette_iou", "{:.3f}"),
        ("lean", "lean_deg", "{:.1f}\N{DEGREE SIGN}"),
    ]
    shown = [(name, form.format(scores[key])) for name, key, form in known if key in scores]
    seen = [f"{part.replace('_', ' ')} {share:.0%}" for part, share in record.get("confidence", {}).items()]
    return shown + ([("seen in the photo:", ", ".join(seen))] if seen else [])


def _export(run: RunFolder, name: str, path: Path | None, config: dict[str, Any], write) -> Made:
    if path is None:
        return run.make(name, config, ["coarse"], write)
    from .run_folder import write_outside

    return write_outside(path, write)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


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
