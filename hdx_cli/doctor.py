"""``hdx doctor``: what on this machine works, what does not, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import __version__, limits
from .errors import WeightsError
from .weights import LOCK, PACKAGE, read_weights

# A run folder takes 20 to 60 MB, and numba's cache about 20 MB.
LITTLE_DISK, TOO_LITTLE_DISK = 1e9, 2e8
NVIDIA_SMI_S = 10
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
        "threads": _threads,
        "cuda": _cuda,
        "gsplat": _gsplat,
        "numba": _numba,
        "cache": _cache,
        "mediapipe": _mediapipe,
        "ffmpeg": _ffmpeg,
        "extras": _extras,
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

    built = "for the CPU" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}"
    return Check("torch", "ok", f"{torch.__version__}, built {built}")


def _processor() -> Check:
    import llvmlite.binding

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = llvmlite.binding.get_host_cpu_features()
    if platform.machine().lower() in ("x86_64", "amd64") and not features.get("avx2"):
        return Check("processor", "warning", f"{usable} cores without AVX2: rendering takes two to three times as long")
    return Check("processor", "ok", f"{usable} cores, {llvmlite.binding.get_host_cpu_name()}")


def _threads() -> Check:
    import torch

    cores, quota = limits.cores(), limits.cpu_quota()
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY")
    told = ", ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))
    detail = f"torch {torch.get_num_threads()}, cores to use {cores}"
    detail += "" if quota is None else f" (the control group allows {quota:g})"
    detail += f"; {told}" if told else ""
    count = f"export OMP_NUM_THREADS={cores} NUMBA_NUM_THREADS={cores}"
    for name in names[:2]:
        text = os.environ.get(name, "")
        if text and not re.fullmatch(r"\s*[1-9]\d{0,4}(\s*,\s*[1-9]\d{0,4})*\s*", text):
            return Check("threads", "failed", f"{name}={text[:40]!r} is no number of threads", f"unset {name}")
    asked = [int(os.environ[name].split(",")[0]) for name in names[:2] if os.environ.get(name)]
    if max(torch.get_num_threads(), *asked, 1) > cores:
        return Check("threads", "warning", f"{detail}; more threads than cores only wait for one another", count)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        fix = "export OMP_WAIT_POLICY=PASSIVE"
        return Check("threads", "warning", f"{detail}; waiting threads keep cores from the others", fix)
    return Check("threads", "ok", detail)


def _cuda() -> Check:
    import torch

    card = _nvidia_smi()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(0)
        detail = f"{torch.cuda.get_device_name(0)}, {limits.shown(free)} of {limits.shown(total)} free"
        return Check("cuda", "ok", f"{detail}; {card or 'no nvidia-smi'}; CUDA {torch.version.cuda}")
    if card is None:
        return Check("cuda", "ok", "no NVIDIA device, no driver; hdx needs none")
    if torch.version.cuda is None:
        fix = f"{REINSTALL} torch  (a wheel for CUDA), or go on without"
        return Check("cuda", "warning", f"{card}, which torch was built without; the CPU computes", fix)
    fix = "install the driver that CUDA " + f"{torch.version.cuda} needs, or export CUDA_VISIBLE_DEVICES=0"
    return Check("cuda", "warning", f"{card}, which torch (CUDA {torch.version.cuda}) cannot use", fix)


def _nvidia_smi() -> str | None:
    """Name, memory and driver of the first NVIDIA device, as the driver's tool says; None where it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=NVIDIA_SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = [field.strip() for field in (said.stdout.splitlines() or [""])[0].split(",")]
    if said.returncode or len(fields) != 3:
        return None
    return f"{fields[0][:60]} with {fields[2][:20]}, driver {fields[1][:20]}"


def _gsplat() -> Check:
    import torch

    from .devices import gsplat_works

    try:
        version = importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if not torch.cuda.is_available():
        return Check("gsplat", "ok", f"{version or 'is not installed'}; not used, as the CPU renders")
    if version is None or not gsplat_works():
        fix = f"{REINSTALL} --no-deps gsplat  (a wheel for your torch, or with nvcc installed)"
        what = "is not installed" if version is None else f"{version}: its kernels do not load"
        return Check("gsplat", "warning", f"{what}, so the CPU renders", fix)
    return Check("gsplat", "ok", f"{version}, its kernels load")


def _numba() -> Check:
    import numba

    own = os.environ.get("NUMBA_CACHE_DIR")
    home = Path(__file__).parent
    places = [Path(own)] if own else [home / "rasterize" / "__pycache__", Path.home() / ".cache" / "numba"]
    for place in places:
        if _is_writable(place):
            root = home if place.is_relative_to(home) else place  # the package's lies in many folders
            size = sum(file.stat().st_size for kind in ("nbi", "nbc") for file in root.rglob(f"*.{kind}"))
            kept = f"{limits.shown(size)} of compiled code in {root}" if size else f"code will be kept in {place}"
            return Check("numba", "ok", f"{numba.__version__}, {kept}")
    return Check(
        "numba", "warning", f"{numba.__version__}: no place for compiled code, so every start compiles for about 20 s",
        f"export NUMBA_CACHE_DIR={Path(tempfile.gettempdir()) / 'numba'}",
    )  # fmt: skip


def _cache() -> Check:
    from .weights_store import cache_folder

    place = cache_folder()
    if not _is_writable(place):
        return Check("cache", "warning", f"{place}: weights cannot be kept there", "export HF_HOME=FOLDER")
    own = place / "hdx"
    size = sum(file.stat().st_size for file in own.rglob("*") if file.is_file() and not file.is_symlink())
    return Check("cache", "ok", f"{limits.shown(size)} of weights in {own}; the bundled ones need none")


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


def _extras() -> Check:
    try:
        required = importlib.metadata.requires("hdx-cli") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("extras", "warning", "hdx-cli is not installed as a package", f"{REINSTALL} hdx-cli")
    missing: dict[str, list[str]] = {}
    for text in required:
        named = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", text)
        if named and extra:
            missing.setdefault(extra[1], [])
            try:
                importlib.metadata.version(named[0])
            except importlib.metadata.PackageNotFoundError:
                missing[extra[1]].append(named[0])
    said = [name if not lacks else f"{name} (without {', '.join(lacks)})" for name, lacks in missing.items()]
    lacking = ",".join(name for name, lacks in missing.items() if lacks)
    add = f"; for what is missing: {Path(sys.executable).name} -m pip install 'hdx-cli[{lacking}]'" if lacking else ""
    return Check("extras", "ok", (", ".join(said) or "none") + add)


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
    free, most = limits.free_memory(), limits.memory_limit()
    if free is None:
        return Check("memory", "ok", "not measured on this system")
    sizes, restorer = limits.Sizes(), "humanfixer"
    needed = limits.cost(sizes, restorer)
    detail = f"{limits.shown(free)} free" + ("" if most is None else f", the control group allows {limits.shown(most)}")
    detail += f"; an avatar takes {limits.shown(needed)}"
    fix = "close other programs" + ("" if most is None else ", or allow the container more (docker run --memory 2g)")
    plan = limits.fitted(sizes, restorer, free - limits.SPARE_BYTES)
    if plan is None:
        least = limits.least(sizes, "none")
        return Check("memory", "failed", f"{detail}, the least one {limits.shown(least.bytes)}", fix)
    lower = plan.sizes.lower_than(sizes)
    if lower:
        return Check("memory", "warning", f"{detail}; it would be made with {limits.words(lower)}", fix)
    return Check("memory", "ok", detail)


def _is_writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
