"""The commands that compare pictures of avatars with true ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..errors import UsageError
from . import options as opt
from .console import Console, session

VIEWS = "views"


class _ViewsUnlessNamed(TyperGroup):
    """``hdx eval PRED GT`` is ``hdx eval views PRED GT``."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [VIEWS, *args]
        return super().parse_args(ctx, args)


evaluation = typer.Typer(
    cls=_ViewsUnlessNamed,
    help="Score pictures against true ones: `hdx eval PRED GT`, or a whole set of people: `hdx eval suite`.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Lpips = Annotated[
    list[str] | None,
    typer.Option(
        "--lpips", help="Weights of vgg16 or alexnet: a folder, or a name of `hdx weights list`; may be repeated.",
        metavar="WEIGHTS",
    ),
]  # fmt: skip
Fid = Annotated[
    str | None, typer.Option("--fid", help="Inception weights in pytorch-fid's layout, likewise.", metavar="WEIGHTS")
]


@evaluation.command(VIEWS)
def views(
    predicted: Annotated[
        Path, typer.Argument(help="Pictures to score, or a subfolder per person.", metavar="PRED", show_default=False)
    ],
    true: Annotated[Path, typer.Argument(help="The true ones, named alike.", metavar="GT", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for scores, tables and a grid of pictures.", metavar="FOLDER"),
    ] = None,
    input_view: Annotated[int, typer.Option("--input-view", help="The view that the avatar was made from.", min=0)] = 0,
    lpips: Lpips = None,
    fid: Fid = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Score pictures of people against true ones: the word `views` may be left out.

    PNG with alpha, or pictures over white. Prints a table of PSNR, SSIM, mask IoU, sharpness and more, over the whole
    picture, the person's crop and the person alone, by side, with and without the input view.
    """
    from ..evaluation import compare, protocol, tables

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        networks = protocol.load_networks(lpips or (), fid)
        result, grid = compare.evaluate(predicted, true, networks, input_view, seed, console)
        table = tables.table_of(result)
        files = compare.write(output, result, table, grid) if output else {}
        text = tables.markdown(table)
        facts = {**result, "files": files}
        console.result(facts, [text], str(output) if output else text)


@evaluation.command()
def suite(
    people: Annotated[
        Path,
        typer.Option("--people", help="People with true views: .npz, or folders of views with cameras.", metavar="DIR"),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Scores, tables, pictures.", metavar="FOLDER")],
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="Avatars, a run folder per person; FOLDER/runs unless told.", metavar="DIR"),
    ] = None,
    height: Annotated[int, typer.Option("--height", help="Of the scored pictures, px.", min=64, max=2048)] = 480,
    blurs: Annotated[
        str, typer.Option("--blurs", help="Sigmas of the blur control, px of 960; empty for none.", metavar="S,S,...")
    ] = "2,5,15",
    base: Annotated[
        str | None, typer.Option("--base", help="The avatar that is blurred and compared with; the best unless told.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first so many people.", min=1)] = None,
    restorer: opt.Restorer = None,
    lpips: Lpips = None,
    fid: Fid = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Make and score avatars of people whose true views are known; goes on where it was stopped.

    A row per stage (coarse, restored, refined) and one for the best blur, which shows what smearing alone would gain.
    """
    from ..evaluation import protocol, tables
    from ..evaluation.suite import Settings, run_suite

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        settings = Settings(height, _sigmas(blurs), base, limit, restorer, seed)
        networks = protocol.load_networks(lpips or (), fid)
        result, table = run_suite(people, runs or output / "runs", output, networks, settings, console)
        console.result(result, [tables.markdown(table)], str(output))


def _sigmas(text: str) -> tuple[float, ...]:
    try:
        sigmas = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        sigmas = (0.0,)
    if not all(0 < sigma <= 100 for sigma in sigmas) or len(sigmas) > 20:
        raise UsageError(f"--blurs {text}: write up to 20 numbers from 0 to 100, for example 2,5,15")
    return sigmas
