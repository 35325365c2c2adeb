"""hdx from Python: the verbs of the command line as functions of paths, importable from ``hdx_cli`` itself.

    from hdx_cli import create, animate, export_files

    run = create("photo.jpg", "me", height_m=1.75)
    animate(run, "walk", camera="orbit")
    export_files(run, "me.glb", "me.html")

Options have the names that they have on the command line, with _ for -. What fails raises ``hdx_cli.errors.HdxError``.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from . import limits, outputs, stages
from .errors import UsageError
from .progress import Progress, Silent
from .run_folder import RunFolder


def check(photo: str | Path, **options: Any) -> dict[str, Any]:
    """Whether a photo is suitable, and why not.

    >>> check("photo.jpg")["suitable"]
    True

    Args:
        options: person, mask, overlay (a path to draw what was found into).
    """
    for name in ("mask", "overlay"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    return stages.check(Path(photo), **options)


def create(
    photo: str | Path,
    output: str | Path | None = None,
    *,
    mask: str | Path | None = None,
    smplx_params: str | Path | None = None,
    device: str = "cpu",
    max_memory: str | int | None = None,
    force: bool = False,
    progress: Progress = Silent(),
    **options: Any,
) -> Path:
    """Photo -> run folder with avatar, splat file, turntable, preview and report; continues where one was cut off.

    >>> run = create("photo.jpg", height_m=1.75, restorer="completion")

    Args:
        output: the run folder; <photo>-avatar unless told.
        max_memory: how much memory it may take, in bytes or as "1.2GB"; what is free unless told.
        options: fields of ``stages.Options``.
    """
    photo = Path(photo)
    folder = Path(output) if output is not None else Path(f"{photo.stem}-avatar")
    chosen, budget = _options(options), limits.budget(max_memory)
    with RunFolder.create(folder, photo, seed=chosen.seed, force=force) as run:
        if mask is not None:
            chosen = replace(chosen, mask=run.adopt(Path(mask), "mask"))
        if smplx_params is not None:
            chosen = replace(chosen, smplx_params=run.adopt(Path(smplx_params), "smplx-params"))
        chosen = stages.within(run, chosen, progress, budget)
        _finish(outputs.everything(run, chosen, progress, device, photo))
    return folder


def fit_coarse(
    run: str | Path,
    *,
    max_memory: str | int | None = None,
    force: bool = False,
    progress: Progress = Silent(),
    **options: Any,
) -> Path:
    """The coarse avatar of a run folder again, with other options; returns its folder.

    >>> fit_coarse("photo-avatar", gaussians=50_000)
    """
    _options(options)
    budget = limits.budget(max_memory)
    with RunFolder.open(Path(run), force=force) as folder:
        chosen = stages.within(folder, stages.Options.remembered(folder, **options), progress, budget)
        _finish(stages.coarse_of(folder, chosen, progress))
        return folder.path / "coarse"


def restore(
    run: str | Path, *, max_memory: str | int | None = None, force: bool = False, progress: Progress = Silent()
) -> Path:
    """HumanFixer's 18 views of the coarse avatar; returns their folder.

    >>> restore("photo-avatar")
    """
    budget = limits.budget(max_memory)
    with RunFolder.open(Path(run), force=force) as folder:
        chosen = stages.within(folder, stages.Options.remembered(folder), progress, budget)
        return stages.restore(folder, chosen, progress).path / "views"


def refine(
    run: str | Path,
    *,
    rounds: int | None = None,
    max_memory: str | int | None = None,
    force: bool = False,
    progress: Progress = Silent(),
) -> Path:
    """The avatar fitted to its restored views; returns the folder of the refined avatar.

    >>> refine("photo-avatar", rounds=2)
    """
    budget = limits.budget(max_memory)
    with RunFolder.open(Path(run), force=force) as folder:
        chosen = stages.Options.remembered(folder, restorer="humanfixer", rounds=rounds)
        chosen = stages.within(folder, chosen, progress, budget)
        folder.remember({name: value for name, value in vars(chosen).items() if value is not None}, chosen.seed)
        _finish(stages.refined_of(folder, chosen, progress))
        return folder.path / "refined"


def render(
    run: str | Path,
    output: str | Path | None = None,
    *,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = Silent(),
    **film: Any,
) -> Path:
    """Film one turn round the avatar; returns the film's path.

    >>> render("photo-avatar", "turn.webm", background="transparent", format="webm")

    Args:
        film: fields of ``outputs.Film``.
    """
    with RunFolder.open(Path(run), force=force) as folder:
        return outputs.render(folder, _made_of(outputs.Film, film), _path(output), progress, device).path


def animate(
    run: str | Path,
    motion: str | Path,
    output: str | Path | None = None,
    *,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = Silent(),
    **take: Any,
) -> Path:
    """Film the avatar in motion; returns the film's path.

    >>> animate("photo-avatar", "walk", camera="orbit", seconds=4)

    Args:
        motion: a built-in motion or a motion file.
        take: fields of ``outputs.Take``.
    """
    with RunFolder.open(Path(run), force=force) as folder:
        wanted = _made_of(outputs.Take, {"motion": str(motion), **take})
        return outputs.animate(folder, wanted, _path(output), progress, device).path


def export_files(
    run: str | Path, *targets: str | Path, force: bool = False, progress: Progress = Silent(), **how: Any
) -> list[Path]:
    """Write the avatar as files for other programs, each by its suffix; returns their paths.

    >>> export_files("photo-avatar", "me.glb", "me.html", motions=("walk", "wave"))

    Args:
        how: fields of ``outputs.Export``.
    """
    with RunFolder.open(Path(run), force=force) as folder:
        wanted = _made_of(outputs.Export, how)
        return [outputs.export(folder, Path(target), wanted, progress).path for target in targets]


def _options(given: dict[str, Any]) -> stages.Options:
    return _made_of(stages.Options, given)


def _made_of(kind: type, given: dict[str, Any]) -> Any:
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(f"no option {', '.join(unknown)}; there are {', '.join(known)}")
    return kind(**given)


def _path(output: str | Path | None) -> Path | None:
    return None if output is None else Path(output)


def _finish(products: Any) -> None:
    for _ in products:
        pass
