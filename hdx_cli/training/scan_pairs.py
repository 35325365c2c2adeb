"""Scans to pairs that HumanFixer trains on: ``hdx train pairs SCANS -o PAIRS`` (figure 3 of HumanDreamer-X).

Every scan is brought to one size, seen from where its face is largest, photographed over a random background, and that
photo goes the way of any other: preprocessing, body fit, coarse avatar. The avatar and the scan are then rendered by
the same 18 cameras. A registered body serves to leave out people with spread arms; the avatar gets the estimated one.

A process per scan: ``python -m hdx_cli.training.scan_pairs`` reads a job from stdin and answers in one line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..avatars.turntable import closed_in
from ..camera import Cameras, orbit_of, turntable
from ..errors import HdxError, InputRejected
from ..observation import Keypoints, Photo
from ..progress import Progress, Silent
from ..run_folder import write_atomically
from .photos import Sitting, Snapshot
from .scan_views import SCENES, EmbreeScene
from .scans import HEIGHT_M, Scan, find_scans, normalising, read_surface
from .synthetic_people import random_background

VIEWS = 18
VARIANTS = ("estimated", "noisy", "early", "refined")
RENDERERS = tuple(SCENES)
PHOTO = (640, 960)
FOV_Y_RAD, FILL = math.radians(22.5), 0.86  # a long lens shows wrong depth least
WIDEST = 0.55 / FILL  # of what a person's outline may measure from any side, in heights of the person
FAR_WRIST = 0.35  # how far beside the pelvis a wrist may be, in heights of the person
SMPL_HEIGHT = 1.67  # of the nominal body that ``motion.smpl`` has its joints of
HEAD_SHARE, HEAD_PX = 0.3, 256  # the top of a person that is searched for a face, and how large
WRISTS, HIPS = (15, 16), (23, 24)  # of the 33 landmarks
REJECTED = "rejected.json"
# One thread a process: the work is a pool of scans
THREADS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is made of every scan.

    Attributes:
        variants: of ``VARIANTS``: the fit as it is; with limbs turned some more; stopped early; refined half way to
            what the bundled HumanFixer makes of it, as a second round would meet it.
        up: axis of the scans that points up (``scans.UPS``).
        size: width and height of the views in pixels.
        renderer: of ``RENDERERS``.
        wide_arms: keep people with spread arms.
        seed: of backgrounds and noise.
    """

    variants: tuple[str, ...] = ("estimated", "noisy")
    up: str = "auto"
    size: tuple[int, int] = (320, 480)
    renderer: str = "embree"
    wide_arms: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """How many pairs were made, how many were there before, and {scan, variant, code, reason} of what was rejected."""

    made: int = 0
    kept: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)


def make_pairs(
    scans: Path,
    out: Path,
    plan: Plan = Plan(),
    jobs: int = 1,
    timeout_s: float = 1800.0,
    force: bool = False,
    progress: Progress = Silent(),
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Make the pairs of all scans of a folder that are not there yet.

    Rejected scans are listed in ``out``/rejected.json and not tried again with the same plan, unless with ``force``.

    Raises:
        UsageError: no scans there.
        ResourceError: ``out`` cannot be written.
    """
    found = find_scans(scans)
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(asdict(plan)))
    settings.pop("variants")
    before = {} if force else _rejections(out / REJECTED, settings)
    rejected = {key: entry for key, entry in before.items() if key[1] in (*plan.variants, None)}
    todo, kept = [], 0
    for scan in found:
        missing = [v for v in plan.variants if force or not (out / f"{scan.name}_{v}.npz").is_file()]
        kept += len(plan.variants) - len(missing)
        known = {key[1] for key in before if key[0] == scan.name}
        missing = [] if None in known else [variant for variant in missing if variant not in known]
        if missing:
            todo.append((scan, missing))
    progress.start("scans", len(found))
    progress.advance(len(found) - len(todo))
    made = 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_in_a_process, scan, missing, out, plan, timeout_s): scan for scan, missing in todo}
        try:
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    scan, answer = waiting.pop(done), done.result()
                    made += len(answer["made"])
                    for entry in answer["rejected"]:
                        rejected[scan.name, entry["variant"]] = {"scan": scan.name, **entry}
                        what = f" ({entry['variant']})" if entry["variant"] else ""
                        progress.warn(entry["code"], f"{scan.name}{what}: {entry['reason']}")
                    say(f"{scan.name}: {', '.join(answer['made']) or 'nothing'} in {answer['seconds']:.0f} s")
                    entries = sorted(rejected.values(), key=lambda entry: (entry["scan"], str(entry["variant"])))
                    facts = {"plan": settings, "rejected": entries}
                    write_atomically(out / REJECTED, (json.dumps(facts, indent=2) + "\n").encode())
                    progress.advance()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return Made(made, kept, [rejected[key] for key in sorted(rejected, key=str)])


def _rejections(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str | None], dict[str, Any]]:
    """What an earlier call rejected under the same plan; a file that is damaged says nothing."""
    try:
        facts = json.loads(path.read_bytes())
        if facts["plan"] == settings:
            return {(entry["scan"], entry["variant"]): entry for entry in facts["rejected"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _in_a_process(scan: Scan, variants: list[str], out: Path, plan: Plan, timeout_s: float) -> dict[str, Any]:
    """Have a process of its own make the pairs of a scan: what it dies of is that scan's alone."""
    job = {
        "scan": {name: None if value is None else str(value) for name, value in vars(scan).items()},
        "variants": variants, "out": str(out), "plan": asdict(plan),
    }  # fmt: skip
    began = time.monotonic()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hdx_cli.training.scan_pairs"], input=json.dumps(job), capture_output=True,
            text=True, errors="replace", timeout=timeout_s, env={**os.environ, **THREADS, "PYTHONPATH": path},
        )  # fmt: skip
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer = _failed("E_TIMEOUT", f"gave up after {timeout_s:.0f} s")
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        answer = _failed("E_PROCESS", f"its process ended early ({last[:200]})")
    return answer | {"seconds": time.monotonic() - began}


def _failed(code: str, reason: str) -> dict[str, Any]:
    return {"made": [], "rejected": [{"variant": None, "code": code, "reason": reason}]}


def pairs_of_scan(scan: Scan, variants: list[str], out: Path, plan: Plan) -> dict[str, Any]:
    """Make the pairs of one scan: names of those made, and why others were not."""
    from ..bodies import anny
    from .pairs import write_pair

    answer: dict[str, Any] = {"made": [], "rejected": []}
    seed = int.from_bytes(scan.name.encode()[-6:], "big") + plan.seed
    try:
        sitting = sitting_of(scan, plan, seed)
        model = anny.load()
    except HdxError as error:
        return _failed(error.code, error.message)
    for variant in variants:
        try:
            target = out / f"{scan.name}_{variant}.npz"
            write_pair(target, sitting, model, variant, seed, scan.person)
            answer["made"].append(variant)
        except HdxError as error:
            answer["rejected"].append({"variant": variant, "code": error.code, "reason": error.message})
    return answer


def sitting_of(scan: Scan, plan: Plan, seed: int) -> Sitting:
    """A scan's photo with what preprocessing makes of it, and the scan from the 18 cameras of the orbit through it.

    The person stands on y = 0, ``HEIGHT_M`` tall, the pelvis on the y axis.

    Raises:
        InputRejected: it cannot be read, nobody is found in its photo, or the arms are spread.
    """
    from ..preprocess import observe

    surface = read_surface(scan)
    transform, _ = normalising(surface.vertices, plan.up)
    surface = surface.moved(transform)
    wrist = None if scan.registration is None else registered_wrist(scan, transform)
    if wrist is not None and wrist > FAR_WRIST and not plan.wide_arms:
        raise _spread(f"a wrist {wrist:.2f} body heights beside the pelvis")
    scene = SCENES[plan.renderer](surface)
    if (wide := widest(surface.vertices)) > WIDEST and not plan.wide_arms:
        raise _spread(f"{wide:.2f} body heights wide")

    camera = reference_camera(scene)
    rgba, _ = scene.render(camera)
    rng = np.random.default_rng(seed)
    alpha = rgba[..., 3:].astype(np.float32) / 255
    background = random_background(*PHOTO, rng)
    rgb = np.round(255 * (rgba[..., :3] / np.float32(255) * alpha + background * (1 - alpha))).astype(np.uint8)
    observation, _, _ = observe(Photo(rgb.astype(np.float32) / 255), name=scan.name)
    if wrist is None and (beside := seen_wrist(observation.keypoints, rgba[..., 3])) > FAR_WRIST and not plan.wide_arms:
        raise _spread(f"a wrist {beside:.2f} body heights beside the pelvis, as the photo shows it")

    pelvis = pelvis_of(scene, camera, observation.keypoints)
    shift = np.eye(4)
    shift[[0, 2], 3] = -pelvis[[0, 2]]
    surface, pelvis = surface.moved(shift), pelvis + shift[:3, 3]
    viewmats = (camera.viewmats.double() @ torch.linalg.inv(torch.from_numpy(shift))).float()
    camera = Cameras(viewmats, camera.Ks, camera.width, camera.height)
    scene = SCENES[plan.renderer](surface)
    cameras = orbit_of(closed_in(torch.from_numpy(surface.vertices).float(), camera, *plan.size), VIEWS)
    made = [scene.render(cameras[index]) for index in range(VIEWS)]
    K, viewmat = camera.Ks[0].double().numpy(), camera.viewmats[0].double().numpy()
    return Sitting(
        Snapshot(rgb, rgba[..., 3].copy(), K, viewmat, observation.keypoints),
        np.round(observation.alpha * 255).astype(np.uint8), np.round(observation.foreground * 255).astype(np.uint8),
        bool(rng.random() < 0.7), np.stack([view for view, _ in made]),
        np.stack([depth for _, depth in made]).astype(np.float16), cameras.viewmats.double().numpy(),
        cameras.Ks[0].double().numpy(), np.eye(3)[None], pelvis[None], np.zeros((0, 3)),
    )  # fmt: skip


def _spread(how: str) -> InputRejected:
    return InputRejected(f"arms spread: {how}", code="E_WIDE_ARMS")


def widest(vertices: Float[np.ndarray, "V 3"]) -> float:
    """Width of the outline from the widest of the 18 sides, over the height; without specks."""
    angles = np.arange(VIEWS // 2) * (2 * math.pi / VIEWS)  # the other half shows the same in a mirror
    across = vertices[:, [0, 2]] @ np.stack([np.cos(angles), -np.sin(angles)])
    low, high = np.quantile(across, [0.0005, 0.9995], axis=0)
    tall = np.subtract(*np.quantile(vertices[:, 1], [0.9995, 0.0005]))
    return float((high - low).max() / tall)


def registered_wrist(scan: Scan, transform: Float[np.ndarray, "4 4"]) -> float:
    """How far the farther wrist of the registered body is beside the pelvis, in body heights.

    Raises:
        InputRejected: the registration is damaged.
    """
    if scan.layout == "anny":
        from ..bodies import anny
        from .synthetic_people import truth

        try:
            positions = truth(scan.registration)[1] * np.cbrt(np.linalg.det(transform[:3, :3]))
            names = anny.load().joint_names
            left, right, *wrists = (positions[names.index(f"{name}.{side}")] for name in ("upperleg01", "wrist")
                                    for side in "LR")  # fmt: skip
        except (OSError, KeyError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:150]
            raise InputRejected(f"{scan.registration}: not a registered body ({reason})", code="E_SCAN") from None
        return _beside(positions[0], left, right, wrists) / HEIGHT_M
    from ..motion.smpl import read_json, read_npz, read_pickle

    read = {".json": read_json, ".npz": read_npz}.get(scan.registration.suffix, read_pickle)
    motion = read(scan.registration)
    at = {"pelvis": np.zeros(3)}
    for index, (name, parent) in enumerate(zip(motion.names, motion.parents, strict=True)):
        if parent >= 0:
            above = motion.names[parent]
            at[name] = at[above] + motion.rotations[0, parent] @ (motion.joints[index] - motion.joints[parent])
    at = {name: motion.axes @ place for name, place in at.items()}
    wrists = [at["left_wrist"], at["right_wrist"]]
    return _beside(at["pelvis"], at["left_hip"], at["right_hip"], wrists) / SMPL_HEIGHT


def _beside(pelvis: np.ndarray, left: np.ndarray, right: np.ndarray, wrists: list[np.ndarray]) -> float:
    """The farthest that a wrist is from the pelvis along the line of the hips, seen from above."""
    across = (left - right) * [1, 0, 1]
    across = across / max(float(np.linalg.norm(across)), 1e-9)
    return max(abs(float((wrist - pelvis) @ across)) for wrist in wrists)


def seen_wrist(keypoints: Keypoints, alpha: UInt8[np.ndarray, "H W"]) -> float:
    """The same by the landmarks of a photo from the front; unseen wrists count as near."""
    rows = np.nonzero((alpha > 127).any(1))[0]
    middle = keypoints.pixels[list(HIPS), 0].mean()
    wrists = keypoints.pixels[list(WRISTS)]
    away = np.where(wrists[:, 2] > 0.5, np.abs(wrists[:, 0] - middle), 0.0)
    return float(away.max() / max(1, len(rows)))


def around(azimuths_rad: Float[torch.Tensor, "C"], width: int, height: int) -> Cameras:
    """Cameras of the orbit's contract: level, at the person's middle, the person ``FILL`` of the height."""
    middle = torch.tensor([0.0, HEIGHT_M / 2, 0.0])
    return turntable(middle, HEIGHT_M, width, height, azimuths_rad, 0.0, FOV_Y_RAD, FILL)


def reference_camera(scene: EmbreeScene) -> Cameras:
    """The camera of the photo: of the 18 sides the one that shows the largest face; where none does, +Z.

    Raises:
        InputRejected: the face cannot be looked for.
    """
    from ..preprocess.mediapipe_models import face_model

    azimuths = torch.arange(VIEWS) * (2 * math.pi / VIEWS)
    rows = round(HEAD_PX / HEAD_SHARE)
    cameras = around(azimuths, rows, rows)
    top = round(rows * (1 - FILL) / 2) - HEAD_PX // 8
    sizes = []
    with face_model() as run:
        for index in range(VIEWS):
            window = cameras[index].resampled(1.0, (rows - HEAD_PX) / 2, top, HEAD_PX, HEAD_PX)
            rgba = scene.render(window, 1)[0]
            alpha = rgba[..., 3:] / np.float32(255)
            faces = run(np.round(rgba[..., :3] * alpha + 200 * (1 - alpha)).astype(np.uint8))
            sizes.append(max(((face[2] - face[0]) * (face[3] - face[1]) * face[4] for face in faces), default=0.0))
    # a detector's boxes differ by more from side to side than a face does: the neighbours have a say
    sizes = sum(weight * np.roll(sizes, turn) for turn, weight in zip(range(-2, 3), (1, 2, 3, 2, 1), strict=True))
    return around(azimuths, *PHOTO)[int(np.argmax(sizes))]


def pelvis_of(scene: EmbreeScene, camera: Cameras, keypoints: Keypoints) -> Float[np.ndarray, "3"]:
    """The middle of the body behind the middle of the hips in a photo, metres.

    Half way between where a ray enters and where it leaves for good.

    Raises:
        InputRejected: the hips are beside the body.
    """
    viewmat, K = camera.viewmats[0].double().numpy(), camera.Ks[0].double().numpy()
    x, y = keypoints.pixels[list(HIPS), :2].mean(0)
    direction = np.array([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], 1.0]) @ viewmat[:3, :3]
    eye = -viewmat[:3, :3].T @ viewmat[:3, 3]
    far = 2 * float(np.linalg.norm(eye))
    face, _, distance = scene.hits(
        np.stack([eye, eye + far * direction]).astype(np.float32), np.stack([direction, -direction]).astype(np.float32)
    )
    if (face < 0).any():
        raise InputRejected("the hips are not where the body is", code="E_NO_HIPS")
    return eye + 0.5 * (distance[0] + far - distance[1]) * direction


def main() -> None:
    """Read a job from stdin, make its pairs, answer on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    job = json.loads(sys.stdin.read())
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    given = job["scan"]
    paths = {name: None if given[name] is None else Path(given[name]) for name in ("mesh", "registration", "texture")}
    scan = Scan(given["name"], given["person"], layout=given["layout"], **paths)
    plan = Plan(**job["plan"] | {"variants": tuple(job["plan"]["variants"]), "size": tuple(job["plan"]["size"])})
    answers.write(json.dumps(pairs_of_scan(scan, job["variants"], Path(job["out"]), plan)) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
