"""The command line: one short function per command, which parses, calls stages and prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import InputRejected, NothingToDo, UsageError
from . import batching, bodying, evaluating, showing, training, weighing
from . import options as opt
from .console import Console, noted, session

app = typer.Typer(
    help="One photo of a person in, an animatable 3D Gaussian avatar out.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "sample.jpg"


def main() -> None:
    """Entry point of the ``hdx`` command."""
    # OpenMP's threads burn a core while they wait for one another; on a busy machine that is three quarters of all time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="hdx")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hdx {__version__}")
        raise typer.Exit


@app.callback()
def hdx(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def create(
    photo: Annotated[
        Path | None,
        typer.Argument(help="A photo of one person, or the word `sample`.", metavar="PHOTO", show_default=False),
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Use the sample photo that comes with hdx.")] = False,
    output: opt.Output = None,
    person: opt.Person = None,
    mask: opt.Mask = None,
    matting: opt.Matting = None,
    gender: opt.Gender = None,
    height_m: opt.HeightM = None,
    build: opt.Build = None,
    age: opt.Age = None,
    body: opt.Body = None,
    smplx_params: opt.SmplxParams = None,
    smplx_use: opt.SmplxUse = None,
    focal_px: opt.FocalPx = None,
    focal_mm35: opt.FocalMm = None,
    gaussians: opt.Count = None,
    iterations: opt.Iterations = None,
    backbone: opt.Backbone = None,
    restorer: opt.Restorer = None,
    rounds: opt.Rounds = None,
    weights: opt.Weights = None,
    identity: opt.Identity = None,
    face_pack: opt.FacePack = None,
    accept_license: opt.AcceptLicense = None,
    device: opt.Device = "auto",
    max_memory: opt.MaxMemory = None,
    vram: opt.Vram = None,
    seed: opt.Seed = 0,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Make an avatar, a turntable film and a preview from one photo.

    Everything goes into one folder, <photo>-avatar unless -o says otherwise. Run the same command again to continue
    where an earlier run stopped.
    """
    from .. import limits, outputs, stages
    from ..devices import choose, within_vram
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        photo = _photo_of(photo, sample)
        budget, most_vram = limits.budget(max_memory), vram and limits.parse_bytes(vram)
        device = choose(device)
        folder = output or Path(f"{photo.stem}-avatar")
        asked = dict(
            person=person, matting=matting, gender=gender, height_m=height_m, build=build, age=age, body=body,
            smplx_use=smplx_use, focal_px=focal_px, focal_mm35=focal_mm35, gaussians=gaussians, iterations=iterations,
            backbone=backbone, restorer=restorer, rounds=rounds, seed=seed,
            **_restorer_of(weights, identity, face_pack, accept_license),
        )  # fmt: skip
        with RunFolder.create(folder, photo, seed=seed, force=force) as run:
            asked["mask"] = run.adopt(mask, "mask") if mask else None
            asked["smplx_params"] = run.adopt(smplx_params, "smplx-params") if smplx_params else None
            chosen = stages.within(run, stages.Options(**asked), console, budget)
            device = within_vram(device, chosen.capped.gaussians, console, most_vram)
            _tell(outputs.everything(run, chosen, console, device, photo), console)
            _print_run(run, console)


@app.command("fit-coarse")
def fit_coarse(
    run: opt.Run,
    person: opt.Person = None,
    mask: opt.Mask = None,
    matting: opt.Matting = None,
    gender: opt.Gender = None,
    height_m: opt.HeightM = None,
    build: opt.Build = None,
    age: opt.Age = None,
    body: opt.Body = None,
    smplx_params: opt.SmplxParams = None,
    smplx_use: opt.SmplxUse = None,
    focal_px: opt.FocalPx = None,
    focal_mm35: opt.FocalMm = None,
    gaussians: opt.Count = None,
    iterations: opt.Iterations = None,
    backbone: opt.Backbone = None,
    device: opt.Device = "auto",
    max_memory: opt.MaxMemory = None,
    seed: opt.SeedAgain = None,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Fit the avatar of a run folder again, with other options; what is not given stays as it was."""
    from .. import limits, stages
    from ..devices import choose
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        budget = limits.budget(max_memory)
        choose(device)
        with RunFolder.open(run, force=force) as folder:
            chosen = stages.Options.remembered(
                folder, person=person, mask=folder.adopt(mask, "mask") if mask else None, matting=matting,
                gender=gender, height_m=height_m, build=build, age=age, body=body, smplx_use=smplx_use,
                smplx_params=folder.adopt(smplx_params, "smplx-params") if smplx_params else None,
                focal_px=focal_px, focal_mm35=focal_mm35, gaussians=gaussians, iterations=iterations, backbone=backbone,
                seed=seed,
            )  # fmt: skip
            chosen = stages.within(folder, chosen, console, budget)
            _tell(stages.coarse_of(folder, chosen, console), console)
            _print_run(folder, console)


@app.command()
def restore(
    run: opt.Run,
    weights: opt.Weights = None,
    identity: opt.Identity = None,
    face_pack: opt.FacePack = None,
    accept_license: opt.AcceptLicense = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
    device: opt.Device = "cpu",
    offload: Annotated[bool, typer.Option("--offload", help="Keep on the device only the part that computes.")] = False,
    max_memory: opt.MaxMemory = None,
    seed: opt.SeedAgain = None,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Restore the 18 views of the coarse avatar of a run folder with HumanFixer, as pictures."""
    from .. import limits, stages
    from ..devices import choose
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        budget, where = limits.budget(max_memory), choose(device)
        own = _restorer_of(weights, identity, face_pack, accept_license)
        with RunFolder.open(run, force=force) as folder:
            chosen = stages.Options.remembered(folder, seed=seed, **own)
            place = stages.require_restorer(chosen)  # before anything is remembered
            if dry_run:
                _print_costs(place, chosen.identity, where, console)
                return
            chosen = stages.within(folder, chosen, console, budget)
            folder.remember({name: value for name, value in vars(chosen).items() if value is not None}, chosen.seed)
            made = stages.restore(folder, chosen, console, device=where, offload=offload)
        noted(console, "views", made)
        views = str(made.path / "views")
        console.result({"views": views, "seconds": made.seconds}, [views], views)


@app.command()
def refine(
    run: opt.Run,
    rounds: opt.Rounds = None,
    max_memory: opt.MaxMemory = None,
    seed: opt.SeedAgain = None,
    force: opt.Force = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Fit the avatar of a run folder to the photo and to its restored views, which are made where they are missing."""
    from .. import limits, stages
    from ..run_folder import RunFolder

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        budget = limits.budget(max_memory)
        with RunFolder.open(run, force=force) as folder:
            chosen = stages.Options.remembered(folder, restorer="humanfixer", rounds=rounds, seed=seed)
            chosen = stages.within(folder, chosen, console, budget)
            folder.remember({name: value for name, value in vars(chosen).items() if value is not None}, chosen.seed)
            _tell(stages.refined_of(folder, chosen, console), console)
            _print_run(folder, console)


@app.command()
def check(
    photo: Annotated[Path, typer.Argument(help="The photo to look at.", metavar="PHOTO", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Draw what was found into this image.", metavar="PATH")
    ] = None,
    person: opt.Person = None,
    mask: opt.Mask = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Say whether a photo is suitable, and why not."""
    from .. import stages

    with session(Console(json=json, quiet=quiet, verbose=verbose, bars=not no_progress)) as console:
        facts = stages.check(_photo_of(photo, False), output, person=person, mask=mask, progress=console)
        verdict = "suitable" if facts["suitable"] else "not suitable"
        lines = [f"{facts['photo']}: {verdict}"]
        lines += [f"  {finding['code']}: {finding['message']}" for finding in facts["findings"]]
        console.result(facts, lines, verdict)
        if not facts["suitable"]:
            raise SystemExit(InputRejected.exit_code)


@app.command()
def doctor(json: opt.Json = False, quiet: opt.Quiet = False, verbose: opt.Verbose = False) -> None:
    """Check this machine and installation, and say how to mend what is wrong."""
    with session(Console(json=json, quiet=quiet, verbose=verbose)) as console:
        from ..doctor import examine

        checks = examine()
        failed = [check for check in checks if check.state == "failed"]
        facts = {"ok": not failed, "checks": [vars(check) for check in checks]}
        lines = [line for check in checks for line in check.lines()]
        console.result(facts, lines, "failed" if failed else "ok")
        if failed:
            raise SystemExit(6)


def _photo_of(photo: Path | None, sample: bool) -> Path:
    if sample and photo is not None:
        raise UsageError("give a photo or --sample, not both")
    if sample or (photo is not None and str(photo) == "sample" and not photo.exists()):
        return SAMPLE
    if photo is None:
        raise NothingToDo("no photo given", hint="hdx create --sample", code="E_NO_PHOTO")
    return photo


def _restorer_of(
    weights: str | None, identity: str | None, face_pack: Path | None, accepted: list[str] | None
) -> dict[str, str | None]:
    """Options of the stages that name another restorer than the bundled one."""
    if face_pack is not None:
        from ..humanfixer.arcface import require_accepted

        require_accepted(accepted or ())
    place = None if weights is None else Path(weights).expanduser()
    return {
        "weights": str(place.resolve()) if place is not None and place.exists() else weights,
        "identity": identity,
        "face_pack": None if face_pack is None else str(face_pack.expanduser().resolve()),
    }


def _print_costs(weights: Path, identity: str | None, device: str, console: Console) -> None:
    from ..humanfixer.checkpoint import read_plan
    from ..humanfixer.costs import estimate

    plan = read_plan(weights, identity)
    for note in plan.notes:
        console.warn("W_WEIGHTS", note)
    cost = estimate(plan, device=device)
    console.result(cost.facts(), cost.lines(), str(round(cost.seconds)))


def _tell(products: Iterator[tuple[str, Any]], console: Console) -> None:
    for what, made in products:
        noted(console, what, made)


def _print_run(run: Any, console: Console) -> None:
    from .. import outputs, stages

    avatar = stages.best_avatar(run)
    results = {
        "avatar": f"{avatar}/{stages.AVATAR}",
        "ply": outputs.PLY,
        "turntable": outputs.TURNTABLE,
        "preview": outputs.PREVIEW,
        "report": outputs.REPORT,
    }
    made_of = {"avatar": avatar}  # what the record is called where it is not the path
    paths = {name: str(run.path / path) for name, path in results.items() if run.is_current(made_of.get(name, path))}
    record = run.record(avatar)
    facts = {
        "run": str(run.path),
        **paths,
        "seed": run.seed,
        "scores": record.get("scores", {}),
        "confidence": record.get("confidence", {}),
        "seconds": {name: made["seconds"] for name, made in run.state["products"].items()},
        "hdx": __version__,
    }
    console.note("; ".join(f"{name} {value}" for name, value in outputs.shown_scores(run)))
    console.result(facts, [f"{name:<10}{path}" for name, path in paths.items()], paths["avatar"])


app.command()(batching.batch)
app.command()(showing.render)
app.command()(showing.animate)
app.command()(showing.motions)
app.command()(showing.export)
app.command()(showing.view)
app.command()(weighing.licenses)
weighing.weights.command("publish")(training.publish)
app.add_typer(weighing.weights, name="weights")
app.add_typer(bodying.body, name="body")
app.add_typer(evaluating.evaluation, name="eval")
app.add_typer(training.train, name="train")


if __name__ == "__main__":
    main()
