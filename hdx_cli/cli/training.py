"""The commands that train: pairs from scans, and HumanFixer from pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as opt
from .console import Console, session

train = typer.Typer(
    help="Train HumanFixer on your own scans; needs: pip install 'hdx-cli[training]'.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# as training.recipe.SIZES, humanfixer.attention.VARIANTS and IDENTITIES, training.recipe.PRECISIONS, training.scans.UPS
# and training.scan_pairs.VARIANTS, RENDERERS, whose modules would make --help slow; a test keeps them equal
SIZES = ("tiny", "small", "medium", "svd")
VARIANTS = ("noncyclic", "cyclic", "cyclic_mask")
IDENTITIES = ("face", "clip+face", "clip", "none")
PRECISIONS = ("no", "bf16")
UPS = ("auto", "y", "z", "-y")
PAIR_VARIANTS = ("estimated", "noisy", "early", "refined")
RENDERERS = ("embree", "blender")
NEEDS = "pip install 'hdx-cli[training]'"


@train.command()
def pairs(
    scans: Annotated[
        Path, typer.Argument(help="A folder of textured scans: GLB, OBJ, PLY.", metavar="SCANS", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the pairs.", metavar="PAIRS", show_default=False)
    ],
    variants: Annotated[
        str,
        typer.Option(
            "--variants", help="Coarse avatars per scan: estimated, noisy, early, refined; commas between.",
            metavar="NAMES",
        ),
    ] = "estimated,noisy",
    up: Annotated[
        str, typer.Option("--up", help="Axis of the scans that points up: auto, y, z or -y.", callback=opt.one_of(*UPS))
    ] = "auto",
    size: Annotated[
        str, typer.Option("--size", help="Size of the views in pixels.", metavar="WxH", callback=opt.size)
    ] = "320x480",
    renderer: Annotated[
        str,
        typer.Option("--renderer", help="embree (CPU) or blender (your own).", callback=opt.one_of(*RENDERERS)),
    ] = "embree",
    wide_arms: Annotated[
        bool, typer.Option("--wide-arms/--no-wide-arms", help="Keep people with spread arms too.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Scans at once, a process each.", min=1, max=256)] = 1,
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", help="Give a scan up after so many seconds.", min=1.0)
    ] = 1800.0,
    seed: opt.Seed = 0,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:  # fmt: skip
    """Make pairs to train on: what a coarse avatar of each scan looks like from 18 sides, and what the scan does.

    Run it again to continue; scans that were rejected are listed with reasons in PAIRS/rejected.json.
    """
    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        asked = tuple(dict.fromkeys(name.strip() for name in variants.split(",") if name.strip()))
        if wrong := [name for name in asked if name not in PAIR_VARIANTS] or ([] if asked else [variants]):
            raise UsageError(f"--variants {wrong[0]}: choose from {', '.join(PAIR_VARIANTS)}")
        with _extra():
            from ..training import scan_pairs
        width, height = (int(side) for side in size.split("x"))
        plan = scan_pairs.Plan(asked, up, (width, height), renderer, wide_arms, seed)
        made = scan_pairs.make_pairs(scans, output, plan, jobs, timeout_s, force, console, console.note)
        facts = {"pairs": str(output), "made": made.made, "kept": made.kept, "rejected": made.rejected}
        count = made.made + made.kept
        lines = [f"{output}: {count} pairs ({made.made} new), {len(made.rejected)} scans or variants rejected"]
        console.result(facts, lines, str(output))


@train.command()
def fixer(
    pairs: Annotated[Path, typer.Argument(help="A folder of pairs.", metavar="PAIRS", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for weights, state and log.", metavar="OUT", show_default=False),
    ],
    size: Annotated[
        str, typer.Option("--size", help="tiny, small, medium or svd.", callback=opt.one_of(*SIZES))
    ] = "small",
    steps: Annotated[int | None, typer.Option("--steps", help="Steps in all; by size unless told.", min=1)] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="People per step, over all processes.", min=1)] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", help="People at once in a process, the rest after them.", min=1)
    ] = None,
    height: Annotated[int | None, typer.Option("--height", help="Rows of the images.")] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Views per person, without temporal layers; 0: all, with.", min=0)
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.", min=0.0)] = None,
    image_weight: Annotated[
        float | None, typer.Option("--image-weight", help="Weight of the loss of decoded images.", min=0.0)
    ] = None,
    perceptual: Annotated[
        float | None, typer.Option("--perceptual", help="Weight of the perceptual loss.", min=0.0)
    ] = None,
    variant: Annotated[
        str, typer.Option("--variant", help=f"Attention: {', '.join(VARIANTS)}.", callback=opt.one_of(*VARIANTS))
    ] = "cyclic_mask",
    identity: Annotated[
        str, typer.Option("--identity", help=f"Tokens: {', '.join(IDENTITIES)}.", callback=opt.one_of(*IDENTITIES))
    ] = "face",
    without_coarse: Annotated[
        bool, typer.Option("--without-coarse", help="Ablation: the photo in the place of all coarse views.")
    ] = False,
    mixed_precision: Annotated[
        str | None,
        typer.Option("--mixed-precision", help="no or bf16; by size unless told.", callback=opt.one_of(*PRECISIONS)),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Trade time for memory."),
    ] = None,
    held_out: Annotated[
        float | None, typer.Option("--held-out", help="Share of the people to measure on.", min=0.0, max=0.9)
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Stable Video Diffusion, for --size svd: pulled weights or a folder.",
                     metavar="NAME"),
    ] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option("--begin-from", help="humanfixer.safetensors of an earlier stage.", metavar="FILE"),
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Stop after so long, to go on later.")] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option("--checkpoint-minutes", help="How often the state is saved.", min=0.0)
    ] = 5.0,
    sample_steps: Annotated[
        int, typer.Option("--sample-steps", help="How often scores and sample sheets are made; 0: at the end.", min=0)
    ] = 500,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:  # fmt: skip
    """Train HumanFixer on pairs; run it again to go on from OUT's state, and by torchrun for several GPUs.

    torchrun --nproc_per_node 4 -m hdx_cli.cli.app train fixer PAIRS -o OUT --size svd --pretrained NAME
    """
    first = int(os.environ.get("RANK", "0")) == 0
    with session(
        Console(json=json, quiet=quiet or not first, verbose=verbose, bars=first and not no_progress)
    ) as console:
        from ..devices import choose

        with _extra():
            from ..training import recipe as recipes
            from ..training import train_fixer
        if not pairs.is_dir():
            raise UsageError(f"{pairs}: no such folder", hint=f"hdx train pairs SCANS -o {pairs}", code="E_NO_FILE")
        recipe = recipes.recipe_of(
            size, steps=steps, batch=batch, height=height, frames=frames, lr=lr, image_weight=image_weight,
            perceptual=perceptual, variant=variant, identity=identity, without_coarse=without_coarse,
            precision=mixed_precision, checkpointing=gradient_checkpointing, held_out=held_out, seed=seed,
        )  # fmt: skip
        pace = train_fixer.Pace(
            micro_batch, minutes, checkpoint_minutes, sample_steps, device=choose(device), force=force,
            begin_from=begin_from, pretrained=_folder(pretrained),
        )  # fmt: skip
        made = train_fixer.train(pairs, output, recipe, pace, console, console.note)
        if first:
            facts = {
                "weights": str(made.weights), "state": str(made.state), "step": made.step, "done": made.done,
                "loss": made.loss, "sheet": str(made.sheet) if made.sheet else None,
            }  # fmt: skip
            console.result(facts, [str(made.weights)], str(made.weights))


def publish(
    folder: Annotated[
        Path,
        typer.Argument(help="What `hdx train fixer` made, or its .safetensors.", metavar="FOLDER", show_default=False),
    ],
    to: Annotated[
        str,
        typer.Option("--to", help="OWNER/NAME of the Hub, or a folder (./DIR).", metavar="WHERE", show_default=False),
    ],
    title: Annotated[str, typer.Option("--title", help="Of the model card.")] = "HumanFixer",
    license: Annotated[
        str, typer.Option("--license", help="Terms of the weights, such as apache-2.0 or cc-by-nc-4.0.", metavar="NAME")
    ] = "other",
    data: Annotated[str, typer.Option("--data", help="What it was trained on, in words.", metavar="TEXT")] = "",
    limits: Annotated[str, typer.Option("--limits", help="What it is known not to do.", metavar="TEXT")] = "",
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Stable Video Diffusion, for weights that began as it.", metavar="NAME"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Write trained weights with a model card into a folder, or into a repository of the Hugging Face Hub.

    Try a folder first, and read its README.md: what is on the Hub stays in its history.
    """
    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        import shutil
        import tempfile

        from .. import hub
        from .. import weights_store as store
        from ..training import publish as publishing

        where = publishing.destination(to)
        card, svd = publishing.Card(title, license, data, limits), _folder(pretrained)
        if isinstance(where, Path):
            files = publishing.lay_out(folder, where, card, svd)
            console.note(f"{len(files)} files; use them with: hdx weights import {where} NAME")
            return console.result({"folder": str(where), "files": files}, [str(where)], str(where))
        no_network = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        made = Path(tempfile.mkdtemp()) / "weights"
        try:
            files = publishing.lay_out(folder, made, card, svd)
            reach = hub.Settings(store.cache_folder(), offline=no_network)
            commit = publishing.upload(made, where, reach, private, console)
        finally:
            shutil.rmtree(made.parent, ignore_errors=True)
        pinned = f"{where.repo}@{commit}"
        console.note(f"{len(files)} files; use them with: hdx weights pull {pinned}")
        console.result({"repo": where.repo, "commit": commit, "files": files}, [pinned], pinned)


def _folder(name: str | None) -> Path | None:
    """The folder of weights by path or by the name they were pulled under."""
    if name is None or Path(name).is_dir():
        return Path(name) if name else None
    from .. import weights_store as store

    return store.require(store.cache_folder(), name)


class _extra:
    """Says how to install what is missing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("hdx_cli"):
            raise UsageError(f"training needs {error.name}", hint=NEEDS, code="E_EXTRA") from None


if __name__ == "__main__":
    train()
