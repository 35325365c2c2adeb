"""Accuracy and CPU time of the body fit on synthetic people: ``python tests/bench/bench_body_fit.py CASES``.

CASES is made by ``python -m hdx_cli.training.synthetic_people`` from people that the calibration never saw. Joints are
compared in camera axes with the pelvis in common and the scale aligned (one photo does not tell it), and after a
Procrustes alignment (PA). Angles are between the true and the fitted orientation of a bone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from hdx_cli.bodies import anny
from hdx_cli.bodies.base import BodyFit, joint_transforms, posed_vertices
from hdx_cli.bodies.fit import BodyPriors, fit_body
from hdx_cli.geometry import matrices_to_rotvecs, rigid_alignment
from hdx_cli.training.synthetic_people import Case, load_case

JOINTS = ["root", "spine03", "spine01", "neck01", "head"] + [
    f"{bone}.{side}"
    for bone in ("upperleg01", "lowerleg01", "foot", "toe1-1", "upperarm01", "lowerarm01", "wrist", "finger3-1")
    for side in "LR"
]
COLUMNS = (
    "mpjpe", "pa", "pa_pve", "head", "foot", "hand", "2d_pct",
    "lean", "pitch", "height", "iou", "inside", "kp", "cpu_s",
)  # fmt: skip


def errors(model: anny.AnnyBody, case: Case, fit: BodyFit) -> dict[str, float]:
    """All figures of one fit: millimetres, degrees, per cent of the body height."""
    at = {name: index for index, name in enumerate(model.joint_names)}
    joints = [at[name] for name in JOINTS]
    viewmat = fit.camera.viewmats[0].double().numpy()
    rest = model.rest(fit.body.shape)
    transforms = joint_transforms(fit.pose.rotations[0], rest.joints, model.parents, fit.pose.translations[0])
    positions = np.einsum("jab,jb->ja", transforms[:, :3, :3], rest.joints) + transforms[:, :3, 3]
    found = positions @ viewmat[:3, :3].T + viewmat[:3, 3]
    true = case.in_camera(case.bone_positions)
    projected, seen = found @ fit.camera.Ks[0].double().numpy().T, true @ case.K.T
    apart = projected[joints, :2] / projected[joints, 2:] - seen[joints, :2] / seen[joints, 2:]
    height_px = case.K[0, 0] * 1.72 / true[0, 2]
    turned = viewmat[:3, :3] @ transforms[:, :3, :3], case.viewmat[:3, :3] @ case.bone_rotations

    def angle(*bones: str) -> float:
        rows = [at[bone] for bone in bones]
        return float(np.degrees(np.linalg.norm(matrices_to_rotvecs(
            turned[0][rows] @ turned[1][rows].transpose(0, 2, 1)), axis=-1)).mean())  # fmt: skip

    a, b = found[joints] - found[0], true[joints] - true[0]
    scaled = a * (a * b).sum() / (a * a).sum()
    index = model.asset["base_index"].astype(int)
    kept = np.flatnonzero(index < len(case.base_vertices))[::7]
    vertices, base = posed_vertices(model, fit.body, fit.pose)[kept], case.base_vertices[index[kept]]
    up_true = case.viewmat[:3, :3] @ [0, 1, 0]
    up_fit = viewmat[:3, :3] @ [0, 1, 0]
    torso = true[at["spine01"]] - true[0], found[at["spine01"]] - found[0]
    lean = [np.degrees(np.arcsin(-(t / np.linalg.norm(t))[2])) for t in torso]
    return {
        "mpjpe": 1e3 * np.linalg.norm(scaled - b, axis=1).mean(),
        "pa": 1e3 * np.linalg.norm(rigid_alignment(a, b) - b, axis=1).mean(),
        "pa_pve": 1e3 * np.linalg.norm(rigid_alignment(vertices, base) - base, axis=1).mean(),
        "head": angle("head"),
        "foot": angle("foot.L", "foot.R"),
        "hand": angle("wrist.L", "wrist.R"),
        "2d_pct": 100 * np.linalg.norm(apart, axis=1).mean() / height_px,
        "lean": lean[1] - lean[0],
        "pitch": float(np.degrees(np.arcsin(-up_true[2]) - np.arcsin(-up_fit[2]))),
        "height": fit.scores["height_m"],
        "iou": fit.scores["silhouette_iou"],
        "inside": fit.scores["inside_mask"],
        "kp": fit.scores["kp_mean_pct"],
    }


def is_cropped(model: anny.AnnyBody, case: Case) -> bool:
    """Whether an ankle lies below the photo: the legs of such a body are the prior's."""
    feet = case.in_camera(case.bone_positions)[[model.joint_names.index(f"foot.{side}") for side in "LR"]] @ case.K.T
    return bool((feet[:, 1] / feet[:, 2] > len(case.alpha)).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every n-th case")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    model = anny.load()
    by_view: dict[str, list] = {}
    for path in sorted(arguments.cases.glob("*.npz"))[:: arguments.every]:
        case = load_case(path)
        start = time.process_time()
        fit = fit_body(model, case.observation(), BodyPriors())
        figures = errors(model, case, fit) | {"cpu_s": time.process_time() - start}
        view = "cropped" if is_cropped(model, case) else case.view
        by_view.setdefault(view, []).append([figures[column] for column in COLUMNS])
        if arguments.verbose:
            print(path.stem, " ".join(f"{c} {figures[c]:.3g}" for c in COLUMNS), flush=True)
    print(f"{'view':12}" + "".join(f"{column:>8}" for column in COLUMNS))
    for view, rows in sorted(by_view.items()):
        print(f"{view + ' ' + str(len(rows)):12}" + "".join(f"{v:8.3g}" for v in np.mean(rows, axis=0)))
        print(f"{'  median':12}" + "".join(f"{v:8.3g}" for v in np.median(rows, axis=0)), flush=True)


if __name__ == "__main__":
    main()
