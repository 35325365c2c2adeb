"""``hdx doctor``: what on this machine works, what does not, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .errors import WeightsError
from .weights import LOCK, PACKAGE, read_weights

# A run folder takes 20 to 60 MB, and numba's cache about 20 MB.
LITTLE_DISK, TOO_LITTLE_DISK = 1e9, 2e8
LITTLE_MEMORY = 3e9
MEDIAPIPE_MODELS = (
    "pose_detection/pose_detection.tflite",
    "pose_landmark/pose_landmark_full.tflite",
    "palm_detection/palm_detection_full.tflite",
    "hand_landmark/hand_landmark_full.tflite",
    "face_landmark/face_landmark.tflite",
)
REINSTALL = f"{Path(sys.executable).name} -m pip install --force-reinstall"


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, ``state`` ("ok", "warning" or "failed"), what was seen, and how to mend it."""

    name: str
    state: str
    detail: str
    fix: str | None = None

    def lines(self) -> list[str]:
        """The check for people."""
        lines = [f"{self.state:<8}{self.name:<12}{self.detail}"]
        return lines + ([f"{'':<20}fix: {self.fix}"] if self.fix else [])


def examine() -> list[Check]:
    """Look at everything; a check that itself breaks is a failed one."""
    looks: dict[str, Callable[[], Check]] = {
        "python": _python,
        "hdx": _package,
        "weights": _weights,
        "torch": _torch,
        "processor": _processor,
        "cuda": _cuda,
        "numba": _numba,
        "mediapipe": _mediapipe,
        "ffmpeg": _ffmpeg,
        "disk": _disk,
        "memory": _memory,
    }
    checks = []
    for name, look in looks.items():
        try:
            checks.append(look())
        except Exception as error:  # a broken installation can raise anything
            text = " ".join(str(error).split())[:200]
            checks.append(Check(name, "failed", f"{type(error).__name__}: {text}", f"{REINSTALL} hdx-cli"))
    return checks


def _python() -> Check:
    version = platform.python_version()
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("python", "failed", f"{version}; 3.11 or 3.12 is needed", "python3.12 -m venv .venv")
    return Check("python", "ok", f"{version} on {platform.platform(terse=True)} {platform.machine()}")


def _package() -> Check:
    home = Path(__file__).resolve().parent
    missing = [name for name in ("samples/sample.jpg", "bodies/anny.npz") if not (home / name).is_file()]
    if missing:
        return Check("hdx", "failed", f"{__version__}: {', '.join(missing)} is missing", f"{REINSTALL} hdx-cli")
    return Check("hdx", "ok", f"{__version__} in {home}")


def _weights() -> Check:
    names = json.loads(LOCK.read_text(encoding="utf-8"))
    for name in names:
        try:
            read_weights(PACKAGE / name)
        except WeightsError as error:
            return Check("weights", "failed", error.message, f"{REINSTALL} hdx-cli")
    return Check("weights", "ok", f"{len(names)} networks, as their sha256 says")


def _torch() -> Check:
    import torch

    return Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _processor() -> Check:
    import llvmlite.binding

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = llvmlite.binding.get_host_cpu_features()
    if platform.machine().lower() in ("x86_64", "amd64") and not features.get("avx2"):
        return Check("processor", "warning", f"{usable} cores without AVX2: rendering takes two to three times as long")
    return Check("processor", "ok", f"{usable} cores, {llvmlite.binding.get_host_cpu_name()}")


def _cuda() -> Check:
    import torch

    from .devices import gsplat_works

    if not torch.cuda.is_available():
        built = "torch was built without it" if torch.version.cuda is None else "no device found"
        return Check("cuda", "ok", f"not there ({built}); hdx needs none")
    device = f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    if not gsplat_works():
        fix = f"{REINSTALL} --no-deps gsplat  (a wheel for your torch, or with nvcc installed)"
        return Check("cuda", "warning", f"{device}; gsplat's kernels do not load, so the CPU renders", fix)
    return Check("cuda", "ok", f"{device}; gsplat {importlib.metadata.version('gsplat')}")


def _numba() -> Check:
    import numba

    own = os.environ.get("NUMBA_CACHE_DIR")
    places = (
        [Path(own)] if own else [Path(__file__).parent / "rasterize" / "__pycache__", Path.home() / ".cache" / "numba"]
    )
    for place in places:
        if _is_writable(place):
            return Check("numba", "ok", f"{numba.__version__}, compiled code is kept in {place}")
    return Check(
        "numba", "warning", f"{numba.__version__}: no place for compiled code, so every start compiles for about 20 s",
        f"export NUMBA_CACHE_DIR={Path(tempfile.gettempdir()) / 'numba'}",
    )  # fmt: skip


def _mediapipe() -> Check:
    spec = importlib.util.find_spec("mediapipe")
    fix = f"{REINSTALL} mediapipe==0.10.21"
    if spec is None or spec.origin is None:
        return Check("mediapipe", "failed", "is not installed", fix)
    models = Path(spec.origin).parent / "modules"
    missing = [name for name in MEDIAPIPE_MODELS if not (models / name).is_file()]
    version = importlib.metadata.version("mediapipe")
    if missing:
        return Check("mediapipe", "failed", f"{version}: {', '.join(missing)} is missing", fix)
    # its native part is what breaks on foreign systems, and it may end the process that loads it
    loaded = subprocess.run([sys.executable, "-c", "import mediapipe"], capture_output=True, text=True)
    if loaded.returncode != 0:
        return Check(
            "mediapipe", "failed", f"{version}: {(loaded.stderr.strip() or 'does not load').splitlines()[-1]}", fix
        )
    return Check("mediapipe", "ok", f"{version} with {len(MEDIAPIPE_MODELS)} models")


def _ffmpeg() -> Check:
    import imageio_ffmpeg

    fix = f"{REINSTALL} imageio-ffmpeg"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return Check("ffmpeg", "failed", str(error).splitlines()[0], fix)
    encoders = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True).stdout
    missing = [name for name in ("libx264", "libvpx-vp9") if name not in encoders]
    if missing:
        return Check("ffmpeg", "failed", f"{program} cannot write {', '.join(missing)}", fix)
    return Check("ffmpeg", "ok", f"{imageio_ffmpeg.get_ffmpeg_version()} with H.264 and VP9")


def _disk() -> Check:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    detail = f"{free / 1e9:.1f} GB free in {here}"
    if free < TOO_LITTLE_DISK or not _is_writable(here):
        reason = detail if free < TOO_LITTLE_DISK else f"{here} is not writable"
        return Check("disk", "failed", reason, "free some space, or write elsewhere with -o")
    if free < LITTLE_DISK:
        return Check("disk", "warning", detail, "free some space, or write elsewhere with -o")
    return Check("disk", "ok", detail)


def _memory() -> Check:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "ok", "not measured on this system")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < LITTLE_MEMORY:
        return Check("memory", "warning", f"{total / 1e9:.1f} GB; large photos may not fit", "use --gaussians 50000")
    return Check("memory", "ok", f"{total / 1e9:.1f} GB")


def _is_writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
