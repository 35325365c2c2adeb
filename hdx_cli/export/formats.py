"""The formats that an avatar can leave in: what each is for, what opens it, whether it moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One row of ``hdx export --list``.

    Attributes:
        suffix: what the name ends in, or ``/`` for a folder.
        holds: what is in it, in a few words.
        purpose: what it is good for.
        opens: programs and libraries that read it.
        moves: "skeleton" where clips and poses can be played by whoever opens it, "frames" for a fixed sequence, "no".
        extra: the optional extra of the package that writing it takes, or None.
    """

    suffix: str
    holds: str
    purpose: str
    opens: str
    moves: str = "no"
    extra: str | None = None


_ALL = (
    Format(
        ".ply", "splats in one pose", "exchange; nothing is lost", "SuperSplat, gsplat, Unity and Unreal splat plugins"
    ),
    Format(
        "/",
        "a folder of posed .ply, one per frame",
        "playing a clip where no skeleton is understood",
        "anything that reads .ply",
        moves="frames",
    ),
    Format(
        ".glb",
        "skinned splats with clips (KHR_gaussian_splatting)",
        "one file that looks right and moves",
        "hdx view; readers of the extension that ignore skins show the rest pose",
        moves="skeleton",
    ),
    Format(
        ".mesh.glb",
        "a skinned, textured mesh with clips",
        "game engines and animation tools that know no splats",
        "Blender, Unity, Unreal, Godot, three.js",
        moves="skeleton",
    ),
    Format(
        ".html",
        "a page with the avatar inside",
        "showing it to somebody; works offline",
        "any browser with WebGL 2",
        moves="skeleton",
    ),
    Format(
        ".spz", "splats in one pose, a fifth of the .ply", "the web and phones", "Spark, Niantic SPZ", extra="formats"
    ),
    Format(
        ".splat",
        "splats in one pose, no harmonics",
        "old web viewers",
        "antimatter15/splat, PlayCanvas, Spark",
        extra="formats",
    ),
    Format(
        ".sog",
        "splats in one pose, smallest; their order is lost",
        "the web",
        "PlayCanvas, SuperSplat, Spark",
        extra="formats",
    ),
    Format(
        ".npz",
        "all arrays with rig and clips",
        "your own code, with NumPy alone",
        "numpy.load and ten lines (export/FORMAT.md)",
        moves="skeleton",
    ),
    Format(
        ".safetensors",
        "the avatar file itself, with avatar.json beside it",
        "keeping and editing; hdx reads it back",
        "hdx, any safetensors reader",
        moves="skeleton",
    ),
)

FORMATS: dict[str, Format] = {entry.suffix: entry for entry in _ALL}


def format_of(name: str) -> Format | None:
    """The format of a file name by its longest suffix (``a.mesh.glb`` is a mesh); a trailing slash means a folder."""
    name = name.lower().replace("\\", "/")
    found = [suffix for suffix in FORMATS if name.endswith(suffix) and len(name) > len(suffix)]
    return FORMATS[max(found, key=len)] if found else None
