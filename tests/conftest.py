"""Shapes and types are checked while the tests run, and small run folders for the tests of files and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it: tests share their cores with processes

# jaxtyping and beartype check the annotations of every module on every call under pytest, save these: what numba compiles,
# which a decorator would break; losses, which refuses shapes that do not match with words of its own; and the command line,
# whose annotations typer reads.
UNCHECKED = {
    "mesh", "simd", "ssim_kernel", "avatars.base", "bodies.kinematics", "rasterize.blend", "rasterize.project", "rasterize.sh",
    "rasterize.tiles", "losses",
}  # fmt: skip
PACKAGE = Path(__file__).resolve().parent.parent / "hdx_cli"


def checked_modules() -> list[str]:
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    chosen = {name for name in names if not name.endswith("__init__") and name not in UNCHECKED}
    return sorted(f"hdx_cli.{name}" for name in chosen if name.split(".")[0] not in ("cli", "training"))


install_import_hook(checked_modules(), "typechecker.check")


def hdx(*arguments: object, cwd: Path, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "hdx_cli.cli.app", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="session")
def toy_avatar():
    """The coarse avatar of the toy person: about two thousand Gaussians, hardly optimised."""
    from toy import ToyBody, toy_fit, toy_photo

    from hdx_cli.avatars import explicit

    model, fit = ToyBody(), toy_fit(160)
    return explicit.fit_coarse(toy_photo(model, fit), fit, model, explicit.Settings(gaussians=2000, iterations=2))


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory, toy_avatar) -> Path:
    """A finished run folder of the toy person, as ``create`` would leave it before the exports. Copy it, do not change it."""
    from PIL import Image
    from toy import ToyBody, toy_fit, toy_photo

    from hdx_cli import run_files, stages
    from hdx_cli.avatars.avatar_file import write_avatar
    from hdx_cli.avatars.turntable import seen_by_part
    from hdx_cli.run_folder import RunFolder

    folder = tmp_path_factory.mktemp("toy")
    model, fit = ToyBody(), toy_fit(160)
    observation = toy_photo(model, fit)
    photo = folder / "toy.png"
    Image.fromarray((observation.photo.rgb * 255).astype("uint8")).save(photo)
    with RunFolder.create(folder / "run", photo) as run:
        run.remember({"seed": 0})
        run.make("observation", {}, ["photo.png"], lambda path: run_files.save_observation(path, observation))
        run.make("body.npz", {}, ["observation"], lambda path: run_files.save_body_fit(path, fit))

        def write(path: Path) -> dict:
            write_avatar(path, toy_avatar)
            return {"scores": toy_avatar.scores, "confidence": seen_by_part(toy_avatar)}

        run.make("coarse", {}, ["observation", "body.npz"], write)
        assert (run.path / "coarse" / stages.AVATAR).is_file()
    return folder / "run"
