"""The commands that show an avatar or write it for other programs."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as opt
from .console import Console, noted, session

COLOURS = {"white": "#ffffff", "black": "#000000", "transparent": "transparent"}


def render(
    run: opt.Run,
    output: opt.Output = None,
    format: Annotated[str | None, typer.Option("--format", help="mp4, webm, gif or png (a folder of frames).")] = None,
    seconds: opt.Seconds = 5.0,
    fps: opt.Fps = 24.0,
    size: opt.Size = "480x720",
    background: opt.Background = "white",
    elevation_deg: opt.Elevation = 0.0,
    device: opt.Device = "auto",
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Film one turn round the avatar of a run folder."""
    from .. import outputs, stages
    from ..devices import choose
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        device = choose(device)
        width, height = (int(side) for side in size.split("x"))
        film = outputs.Film(seconds, fps, (width, height), _colour(background), elevation_deg, _format(format, output))
        with RunFolder.open(run, force=force) as folder:
            avatar = stages.best_avatar(folder)
            made = outputs.render(folder, film, output, console, device)
        noted(console, "turntable", made, avatar)
        facts = {"turntable": str(made.path), "of": avatar, "seconds": made.seconds}
        console.result(facts, [str(made.path)], str(made.path))


def animate(
    run: opt.Run,
    motion: Annotated[
        str, typer.Option("--motion", help="A motion of `hdx motions`, or a file: .bvh, .npz, .smpl, folder of .json.")
    ],
    output: opt.Output = None,
    fps: opt.Fps = 30.0,
    speed: Annotated[float, typer.Option("--speed", help="2 is twice as fast.", min=0.05, max=20.0)] = 1.0,
    frames: Annotated[
        str | None,
        typer.Option("--frames", help="Only these frames of the motion, LAST left out.", metavar="FIRST:LAST"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Repeat a looping motion for so long.", min=0.1, max=600.0)
    ] = None,
    camera: Annotated[
        str, typer.Option("--camera", help="fixed, follow or orbit.", callback=opt.one_of("fixed", "follow", "orbit"))
    ] = "follow",
    format: Annotated[str | None, typer.Option("--format", help="mp4, webm, gif or png (a folder of frames).")] = None,
    size: opt.Size = "640x960",
    background: opt.Background = "white",
    elevation_deg: opt.Elevation = 8.0,
    azimuth_deg: Annotated[float, typer.Option("--azimuth-deg", help="0 looks from the front.")] = 0.0,
    allow_pickle: opt.AllowPickle = False,
    device: opt.Device = "auto",
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Film the avatar of a run folder in motion."""
    from .. import outputs, stages
    from ..devices import choose
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        device = choose(device)
        width, height = (int(side) for side in size.split("x"))
        take = outputs.Take(
            motion, fps, speed, _frames(frames), seconds, camera, (width, height), _colour(background), elevation_deg,
            azimuth_deg, _format(format, output), allow_pickle,
        )  # fmt: skip
        with RunFolder.open(run, force=force) as folder:
            avatar = stages.best_avatar(folder)
            made = outputs.animate(folder, take, output, console, device)
        noted(console, "animation", made, avatar)
        facts = {"animation": str(made.path), "motion": motion, "of": avatar, "seconds": made.seconds}
        console.result(facts, [str(made.path)], str(made.path))


def motions(json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None:
    """List the motions that come with hdx."""
    from ..motion import BUILT_IN

    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        lines = [f"{name:<14}{what}" for name, what in BUILT_IN.items()]
        lines.append("or a file: .bvh, AMASS or SMPL(-X) .npz, .smpl, a folder of SMPL-X .json")
        console.result({"motions": BUILT_IN}, lines, "\n".join(BUILT_IN))


def _list_formats(wanted: bool) -> None:
    if wanted:
        from ..export.formats import FORMATS

        for name, entry in FORMATS.items():
            needs = f" (needs: pip install 'hdx-cli[{entry.extra}]')" if entry.extra else ""
            shown = "folder" if name == "/" else name
            print(f"{shown:<13}{entry.holds}{needs}")
            print(f"{'':<13}for {entry.purpose}; opened by {entry.opens}; moves: {entry.moves}")
        raise typer.Exit


def export(
    run: opt.Run,
    targets: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files to write, each by its suffix; `hdx export --list`.", metavar="OUT...", show_default=False
        ),
    ] = None,
    output: opt.Output = None,
    motion: Annotated[
        list[str] | None, typer.Option("--motion", help="A motion to put into files that move; may be repeated.")
    ] = None,
    pose: Annotated[
        str, typer.Option("--pose", help="Of files that do not move: photo, rest or a motion.", metavar="NAME")
    ] = "photo",
    frame: Annotated[int, typer.Option("--frame", help="Which frame of the motion of --pose.", min=0)] = 0,
    up: Annotated[
        str, typer.Option("--up", help="The axis that points up: y, z or -y.", callback=opt.one_of("y", "z", "-y"))
    ] = "y",
    sh_pad: Annotated[
        int | None, typer.Option("--sh-pad", help="Pad harmonics up to this degree; Unity wants 3.", min=0, max=3)
    ] = None,
    formats: Annotated[
        bool,
        typer.Option("--list", help="List the formats and what opens them.", callback=_list_formats, is_eager=True),
    ] = False,
    allow_pickle: opt.AllowPickle = False,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Write the avatar of a run folder for other programs; exports/avatar.ply where no file is named."""
    from .. import outputs, stages
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        wanted = [*(targets or []), *([output] if output else [])]
        how = outputs.Export(tuple(motion) if motion else None, pose, frame, up, sh_pad, allow_pickle)
        for target in wanted:
            outputs.suffix_of(target, how, run)  # told before anything is written
        with RunFolder.open(run, force=force) as folder:
            avatar = stages.best_avatar(folder)
            made = [outputs.export(folder, target, how, console) for target in wanted]
            if not wanted:
                made = [outputs.export_ply(folder, how)]
        for file in made:
            noted(console, file.path.name, file, avatar)
        paths = [str(file.path) for file in made]
        facts = {"files": paths, "of": avatar, "seconds": round(sum(file.seconds for file in made), 3)}
        console.result(facts, paths, "\n".join(paths))


def view(
    run: opt.Run,
    motion: Annotated[
        list[str] | None, typer.Option("--motion", help="Only this motion, or a file; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
    allow_pickle: opt.AllowPickle = False,
    force: opt.Force = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Open the moving avatar of a run folder in the browser, served to this machine only; Ctrl-C ends it."""
    import threading
    import webbrowser

    from .. import outputs, stages
    from ..export.server import serve
    from ..run_folder import RunFolder

    with session(Console(quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        how = outputs.Export(motions=tuple(motion) if motion else outputs.VIEWER_CLIPS, allow_pickle=allow_pickle)
        with RunFolder.open(run, force=force) as folder:
            avatar = stages.best_avatar(folder)
            made = outputs.viewer(folder, how, console)
            page = made.path.read_bytes()
        noted(console, "viewer", made, avatar)
        with serve(page, port) as address:
            console.result({}, [address], address)
            console.note("Ctrl-C ends it")
            if browser:
                webbrowser.open(address)
            with contextlib.suppress(KeyboardInterrupt):  # the way to leave, not a failure
                threading.Event().wait()


def _colour(name: str) -> str:
    colour = COLOURS.get(name.lower(), name.lower())
    if colour != "transparent" and not re.fullmatch("#[0-9a-f]{6}", colour):
        raise UsageError(f"--background {name}: choose white, black, transparent or #rrggbb")
    return colour


def _format(format: str | None, output: Path | None) -> str:
    """The film format: as asked, else by the suffix of the output, else mp4."""
    from ..export.video import FORMATS

    suffix = output.suffix.lower().lstrip(".") if output else ""
    chosen = format or (suffix or "png" if output else "mp4")
    if chosen not in FORMATS:
        raise UsageError(f"--format {chosen}: choose one of {', '.join(FORMATS)}")
    if chosen != (suffix or "png") and output:
        raise UsageError(f"-o {output}: does not fit --format {chosen}")
    return chosen


def _frames(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise UsageError(f"--frames {text}: write it as FIRST:LAST, for example 0:119")
    return int(first), int(last)
