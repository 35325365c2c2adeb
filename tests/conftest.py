"""Shapes and types are checked while the tests run, and small run folders for the tests of files and commands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
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


@pytest.fixture(scope="session")
def rigged_avatar():
    """400 Gaussians on the surface of the real body and rig, standing at rest."""
    import numpy as np
    import torch

    from hdx_cli.avatars.base import Avatar, standing_at_rest, strongest
    from hdx_cli.bodies import anny
    from hdx_cli.bodies.base import Body, RestBody
    from hdx_cli.gaussians import Gaussians, sh_from_rgb

    model, rng = anny.load(), np.random.default_rng(0)
    rest = model.rest(model.default_shape)
    chosen = np.sort(rng.choice(len(rest.vertices), 400, replace=False))
    canonical = Gaussians(
        torch.from_numpy(rest.vertices[chosen].astype(np.float32)),
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(400, 4)).astype(np.float32))),
        torch.from_numpy(rng.uniform(0.005, 0.03, (400, 3)).astype(np.float32)),
        torch.full((400,), 0.9),
        sh_from_rgb(torch.from_numpy(rng.random((400, 3)).astype(np.float32))),
    )
    avatar = Avatar(
        canonical, *strongest(model.weights[chosen]), Body("anny", model.default_shape),
        RestBody(np.zeros((0, 3), np.float32), rest.joints), model.parents, model.joint_names, None,
        np.ones(400, np.float32), model.parts[chosen].astype(np.uint8), {"front_psnr_db": 30.0},
    )  # fmt: skip
    return replace(avatar, photo_pose=standing_at_rest(avatar))


@pytest.fixture(scope="session")
def rigged_run(tmp_path_factory, rigged_avatar) -> Path:
    """A run folder with ``rigged_avatar`` as its coarse one and a grey photo. Copy it, do not change it."""
    import numpy as np
    from PIL import Image
    from toy import ToyBody, toy_fit, toy_photo

    from hdx_cli import run_files
    from hdx_cli.avatars.avatar_file import write_avatar
    from hdx_cli.run_folder import RunFolder

    folder = tmp_path_factory.mktemp("rigged")
    observation = toy_photo(ToyBody(), toy_fit(160))
    Image.fromarray(np.full((160, 96, 3), 128, np.uint8)).save(folder / "grey.png")
    with RunFolder.create(folder / "run", folder / "grey.png") as run:
        run.remember({"seed": 0, "restorer": "none"})
        run.make("observation", {}, ["photo.png"], lambda path: run_files.save_observation(path, observation))
        run.make("body.npz", {}, ["observation"], lambda path: run_files.save_body_fit(path, toy_fit(160)))

        def write(path: Path) -> dict:
            write_avatar(path, rigged_avatar)
            return {"scores": rigged_avatar.scores, "confidence": {"head": 0.5}}

        run.make("coarse", {}, ["observation", "body.npz"], write)
    return folder / "run"
