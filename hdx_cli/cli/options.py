"""The options of the commands, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEVICES = ("auto", "cpu", "cuda")
MATTINGS = ("default", "birefnet")
BACKBONES = ("explicit", "gaussian-avatar", "animatable-gaussians")
RESTORERS = ("none", "completion", "humanfixer")
# as preprocess.MATTINGS, avatars.backbones.NAMES, stages.RESTORERS, bodies.fit.GENDERS and BUILDS, whose modules would make --help slow; a test
# keeps them equal
GENDERS = ("female", "male", "neutral")
BUILDS = ("slim", "average", "athletic", "heavy")


def one_of(*allowed: str):
    """A check that an option is one of ``allowed``; typer's own needs an Enum class per option."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"choose one of {', '.join(allowed)}")
        return value

    return check


def size(value: str) -> str:
    """Check a WxH size: even, as films store colour at half resolution, and of a sensible range."""
    try:
        width, height = (int(side) for side in value.lower().split("x"))
    except ValueError:
        raise typer.BadParameter("write it as WIDTHxHEIGHT, for example 480x720") from None
    if width % 2 or height % 2 or not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise typer.BadParameter("width and height must be even and between 16 and 8192")
    return f"{width}x{height}"


Device = Annotated[
    str, typer.Option("--device", help="Where to compute: auto, cpu or cuda.", callback=one_of(*DEVICES))
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0)]
SeedAgain = Annotated[int | None, typer.Option("--seed", help="Another seed of everything random.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the path of the result.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks and library warnings.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Draw no progress bars.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory", help="Memory it may take, as 1.2GB; what is free unless told.", metavar="SIZE",
        show_default=False,
    ),
]  # fmt: skip
Vram = Annotated[
    str | None,
    typer.Option(
        "--vram", help="GPU memory it may take, as 4GB; what is free unless told.", metavar="SIZE", show_default=False,
    ),
]  # fmt: skip
Force = Annotated[bool, typer.Option("--force", help="Do everything again, whatever is done.")]

Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Where to write.", metavar="PATH", show_default=False)
]
Run = Annotated[Path, typer.Argument(help="A folder that `hdx create` made.", metavar="RUN", show_default=False)]

Person = Annotated[int | None, typer.Option("--person", help="Which person, counted from the left.", min=1)]
Mask = Annotated[Path | None, typer.Option("--mask", help="Your own mask of the person, as an image.", metavar="FILE")]
Matting = Annotated[
    str | None,
    typer.Option("--matting", help="How to cut out: default or birefnet.", metavar="NAME", callback=one_of(*MATTINGS)),
]
Gender = Annotated[
    str | None, typer.Option("--gender", help="Body: female, male or neutral.", callback=one_of(*GENDERS))
]
HeightM = Annotated[float | None, typer.Option("--height-m", help="Standing height in metres.", min=0.4, max=2.6)]
Build = Annotated[
    str | None, typer.Option("--build", help="Body: slim, average, athletic or heavy.", callback=one_of(*BUILDS))
]
Age = Annotated[float | None, typer.Option("--age", help="Age in years.", min=0.0, max=120.0)]
Body = Annotated[
    str | None,
    typer.Option("--body", help="anny, or smplx or smpl after `hdx body add`.", metavar="NAME", show_default=False),
]
SmplxParams = Annotated[
    Path | None,
    typer.Option("--smplx-params", help="SMPL(-X) parameters of another program.", metavar="FILE", show_default=False),
]
SmplxUse = Annotated[
    str | None,
    typer.Option(
        "--smplx-use", help="Those are the start (default), or final.", metavar="HOW",
        callback=one_of("start", "final"),
    ),
]  # fmt: skip
FocalPx = Annotated[float | None, typer.Option("--focal-px", help="Focal length in pixels of the photo.", min=1.0)]
FocalMm = Annotated[float | None, typer.Option("--focal-mm35", help="Focal length in mm, 35 mm equivalent.", min=5.0)]
Count = Annotated[int | None, typer.Option("--gaussians", help="About how many Gaussians.", min=1000, max=2_000_000)]
Iterations = Annotated[int | None, typer.Option("--iterations", help="Optimisation steps.", min=0, max=10_000)]
Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="What the avatar is made by: explicit (default), gaussian-avatar or animatable-gaussians.",
        metavar="NAME", callback=one_of(*BACKBONES),
    ),
]  # fmt: skip
Restorer = Annotated[
    str | None,
    typer.Option(
        "--restorer", help="What makes up the unseen side: humanfixer (default), completion (quicker) or none.", metavar="NAME",
        callback=one_of(*RESTORERS),
    ),
]  # fmt: skip
Rounds = Annotated[
    int | None, typer.Option("--rounds", help="Rounds of restoring and refining; 1 unless told.", min=1, max=3)
]

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Restore with these: a name of `hdx weights list`, a folder, or bundled.",
        metavar="NAME|FOLDER",
    ),
]
IDENTITIES = ("face", "clip", "clip+face", "none")
Identity = Annotated[
    str | None,
    typer.Option(
        "--identity", help="face, clip, clip+face or none; what the weights know unless told.", metavar="NAME",
        callback=one_of(*IDENTITIES),
    ),
]  # fmt: skip
FacePack = Annotated[
    Path | None, typer.Option("--face-pack", help="Your folder of InsightFace's models.", metavar="FOLDER")
]
AcceptLicense = Annotated[
    list[str] | None,
    typer.Option("--accept-license", help="insightface: its models are for non-commercial research.", metavar="NAME"),
]

Seconds = Annotated[float, typer.Option("--seconds", help="Length of one turn.", min=0.1, max=120.0)]
Fps = Annotated[float, typer.Option("--fps", help="Frames per second.", min=1.0, max=60.0)]
Size = Annotated[str, typer.Option("--size", help="Picture size in pixels, even.", metavar="WxH", callback=size)]
Background = Annotated[
    str, typer.Option("--background", help="white, black, #rrggbb or transparent.", metavar="COLOUR")
]
Elevation = Annotated[float, typer.Option("--elevation-deg", help="Height of the camera.", min=-80.0, max=80.0)]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read motions kept as Python pickles, by a reader that runs no code.")
]
