"""What is made of an avatar: each loads the best one of the run folder, calls one core function and saves.

``coarse`` or ``refined`` -> ``exports/*`` and ``preview.png``, or a file wherever a person wants it. No maths, no printing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, limits
from .errors import UsageError
from .progress import Progress, Silent
from .run_folder import Made, RunFolder, sha256_of, write_outside
from .stages import AVATAR, Options, avatar_of, best_avatar

if TYPE_CHECKING:
    from .avatars.base import Avatar
    from .export.glb import SkinnedGaussians
    from .gaussians import Gaussians
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
VIEWER = "exports/viewer.html"
STILL_S = 2.0  # length of the film of a single pose
CLIPS = ("idle", "walk", "wave")  # in a file that moves, where none are named
VIEWER_CLIPS = ("idle", "walk", "run", "wave", "jumping-jack", "squat", "turn", "dance", "t-pose")


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

    def write(partial: Path, device: str) -> dict[str, Any]:
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
    return _on(device, progress, write, lambda writes: _export(run, avatar, name, path, asdict(film), writes))


@dataclass(frozen=True)
class Take:
    """How a motion is filmed; ``frames`` takes those from the first up to, but not including, the last, counted from 0.

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
    _warn_of_pickles(progress, (take.motion,), take.allow_pickle)
    _require_alpha(take.background, take.format, f"hdx animate {run.path} --motion {take.motion}")

    def write(partial: Path, device: str) -> dict[str, Any]:
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
        if take.seconds is not None or len(clip) == 1:
            clip = repeated(clip, take.seconds or STILL_S)
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
    config = asdict(take) | _content_of(take.motion)
    return _on(device, progress, write, lambda writes: _export(run, product, name, path, config, writes))


@dataclass(frozen=True)
class Export:
    """How an avatar is written for other programs.

    Attributes:
        motions: clips inside files that move; None takes ``CLIPS``.
        pose: of files that do not move: photo, rest, or a motion; frame: which frame of it.
        up: axis that points up in splat files; sh_degree: pad harmonics to this degree (.ply).
        allow_pickle: as for ``Take``.
    """

    motions: tuple[str, ...] | None = None
    pose: str = "photo"
    frame: int = 0
    up: str = "y"
    sh_degree: int | None = None
    allow_pickle: bool = False


def export(run: RunFolder, target: Path, how: Export = Export(), progress: Progress = Silent()) -> Made:
    """The best avatar -> a file at ``target``, by its suffix (``export.formats``); a folder of .ply where there is none.

    Raises:
        UsageError: an unknown suffix, motion or frame, or a library that is not installed.
    """
    suffix = suffix_of(target, how, run.path)
    product = best_avatar(run)
    _warn_of_pickles(progress, (*(how.motions or ()), how.pose), how.allow_pickle)

    def write(partial: Path) -> None:
        from .avatars.avatar_file import read_avatar

        progress.start(target.name)
        avatar = read_avatar(run.path / product)
        _WRITERS[suffix](partial, avatar, how, target.stem)

    return write_outside(target, write)


def suffix_of(target: Path, how: Export, run: Path) -> str:
    """The format that ``target`` asks for, a key of ``export.formats.FORMATS``; ``run`` is for the hints.

    Raises:
        UsageError: hdx does not write such files, or a folder is asked for without a motion to put into it.
    """
    from .export.formats import FORMATS, format_of

    entry = format_of(target.name if target.suffix else f"{target.name}/")
    if entry is None:
        written = ", ".join(suffix for suffix in FORMATS if suffix not in ("/", ".safetensors"))
        raise UsageError(
            f"{target}: hdx writes {written} and folders of .ply", hint="hdx export --list", code="E_SUFFIX"
        )
    if entry.suffix == ".safetensors":
        raise UsageError(
            f"{target}: the avatar file is there already", hint=f"ls {run}/*/avatar.safetensors", code="E_SUFFIX"
        )
    if entry.moves == "frames" and not how.motions:
        raise UsageError(f"{target}: a folder of .ply takes a motion", hint=f"hdx export {run} {target} --motion walk")
    return entry.suffix


def export_ply(run: RunFolder, how: Export = Export()) -> Made:
    """The best avatar -> ``exports/avatar.ply``."""
    product = best_avatar(run)

    def write(partial: Path) -> None:
        from .avatars.avatar_file import read_avatar

        _write_ply(partial, read_avatar(run.path / product), how, run.path.name)

    return run.make(PLY, asdict(how) | _content_of(how.pose), [product], write)


def viewer(run: RunFolder, how: Export = Export(motions=VIEWER_CLIPS), progress: Progress = Silent()) -> Made:
    """The best avatar -> ``exports/viewer.html``, a page in which it moves."""
    product = best_avatar(run)

    def write(partial: Path) -> None:
        from .avatars.avatar_file import read_avatar

        progress.start("viewer")
        _write_page(partial, read_avatar(run.path / product), how, run.path.name)

    contents = [_content_of(motion) for motion in how.motions or ()]
    return run.make(VIEWER, asdict(how) | {"contents": contents}, [product], write)


def _write_ply(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .export.ply import write_ply

    write_ply(path, _posed(avatar, how), sh_degree=how.sh_degree, up=how.up)


def _write_sequence(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .export.archive import write_sequence

    for motion in how.motions or ():
        clip = _clip(avatar, motion, allow_pickle=how.allow_pickle)
        folder = path if len(how.motions) == 1 else path / clip.name
        frames = (avatar.gaussians(clip.pose, frame) for frame in range(len(clip)))
        write_sequence(folder, frames, sh_degree=how.sh_degree, up=how.up)


def _write_glb(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .avatars.avatar_file import licences_of
    from .export.glb import write_glb

    write_glb(path, _skinned(avatar, how), licences_of(avatar.body.model))


def _write_mesh(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .avatars.avatar_file import licences_of
    from .avatars.base import strongest
    from .bodies import NAMES, load
    from .export.mesh_glb import SkinnedMesh, baked_texture, clothed, write_mesh_glb

    if avatar.body.model.split("-")[0] not in NAMES:
        raise UsageError(f"{path.name}: hdx has no mesh of the body model {avatar.body.model}")
    model = load(avatar.body.model)
    if not len(model.uv):
        raise UsageError(f"{path.name}: the file of the body model {avatar.body.model} has no texture coordinates")
    skinned = _skinned(avatar, how)
    vertices = clothed(model.rest(avatar.body.shape).vertices, model.faces, avatar.canonical, avatar.visibility)
    mesh = SkinnedMesh(vertices, model.faces, *strongest(model.weights), model.uv, model.uv_faces)
    texture = baked_texture(mesh, avatar.canonical, avatar.visibility)
    write_mesh_glb(
        path, mesh, skinned.rig, skinned.animations, texture=texture, licences=licences_of(avatar.body.model)
    )


def _write_page(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .avatars.avatar_file import licences_of
    from .export.glb import glb_bytes
    from .export.html import write_html

    skinned = _skinned(avatar, replace(how, motions=how.motions or VIEWER_CLIPS))
    write_html(path, glb_bytes(skinned, licences_of(avatar.body.model), str(path)), title)


def _write_packed(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .export.packed import write_packed

    write_packed(path, _posed(avatar, how), up=how.up)


def _write_archive(path: Path, avatar: Avatar, how: Export, title: str) -> None:
    from .export.archive import write_archive

    write_archive(path, _skinned(avatar, how))


_WRITERS = {
    ".ply": _write_ply, "/": _write_sequence, ".glb": _write_glb, ".mesh.glb": _write_mesh, ".html": _write_page,
    ".spz": _write_packed, ".splat": _write_packed, ".sog": _write_packed, ".npz": _write_archive,
}  # fmt: skip


def _posed(avatar: Avatar, how: Export) -> Gaussians:
    """The Gaussians in the pose that was asked for, feet on y = 0."""
    if how.pose == "photo":
        return avatar.gaussians()
    if how.pose == "rest":
        from .avatars.base import standing_at_rest

        return avatar.gaussians(standing_at_rest(avatar))
    clip = _clip(avatar, how.pose, allow_pickle=how.allow_pickle)
    if how.frame >= len(clip):
        raise UsageError(f"--frame {how.frame}: {clip.name} has the frames 0 to {len(clip) - 1}")
    return avatar.gaussians(clip.pose, how.frame)


def _skinned(avatar: Avatar, how: Export) -> SkinnedGaussians:
    from .export.glb import Animation, Rig, SkinnedGaussians

    chosen = how.motions if how.motions is not None else CLIPS
    clips = [_clip(avatar, motion, allow_pickle=how.allow_pickle) for motion in chosen]
    return SkinnedGaussians(
        avatar.canonical, avatar.joint_indices, avatar.joint_weights,
        Rig(avatar.rest.joints, avatar.parents, avatar.joint_names),
        tuple(Animation(clip.name, clip.pose, clip.fps, clip.loops) for clip in clips),
    )  # fmt: skip


def preview(run: RunFolder, device: str = "cpu") -> Made:
    """``observation/`` and the best avatar -> ``preview.png``: the photo, eight views and the scores."""
    avatar = best_avatar(run)

    def write(partial: Path, device: str) -> None:
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

    made_of = ["observation", avatar]
    return _on(device, Silent(), write, lambda writes: run.make(PREVIEW, {"views": SHEET_VIEWS}, made_of, writes))


def report(run: RunFolder) -> Made:
    """Everything made so far -> ``report.html``: photo, film, scores, warnings, files, what to do with them, licences."""
    avatar = best_avatar(run)
    film = TURNTABLE if run.is_current(TURNTABLE) else None

    def write(partial: Path) -> dict[str, Any]:
        from . import licences
        from .export.report import Report, write_report

        used = licences.parts_of(run.state)
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
                licences=licences.rows(used),
                made=f"made by hdx {__version__} from one photo; everything not seen in it is a guess",
            ),
        )
        return {"licences": licences.block(used)}

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


def _on(
    device: str, progress: Progress, write: Callable[[Path, str], Any], make: Callable[[Callable[[Path], Any]], Made]
) -> Made:
    """What ``make`` makes with ``write`` on a device; where the GPU's memory runs out, on the CPU, which is told."""
    if device != "cpu":
        try:
            return make(lambda partial: write(partial, device))
        except Exception as error:
            if not limits.is_out_of_memory(error):
                raise
        progress.warn("W_LESS_MEMORY", "the GPU's memory ran out; the CPU renders")
    return make(lambda partial: write(partial, "cpu"))


def _export(run: RunFolder, avatar: str, name: str, path: Path | None, config: dict[str, Any], write) -> Made:
    if path is None:
        return run.make(name, config, [avatar], write)
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


def _warn_of_pickles(progress: Progress, motions: tuple[str, ...], allowed: bool) -> None:
    for motion in motions if allowed else ():
        if Path(motion).suffix.lower() in (".pkl", ".pt", ".pth"):
            progress.warn("W_PICKLE", f"{motion}: a pickle; only its arrays are read, but know where it comes from")


def _content_of(motion: str) -> dict[str, Any]:
    """What a motion file or a folder of them holds, for the record; nothing for a built-in motion."""
    path = Path(motion)
    files = (
        sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] if path.is_file() else []
    )
    return {"sha256": [sha256_of(file) for file in files]} if files else {}
