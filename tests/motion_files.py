"""Motion files for tests, written by independent code: a small skeleton in the naming of several programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

# name in our order, parent, position at rest in a T-pose, metres, +Y up, facing +Z
JOINTS = (
    ("hips", -1, (0.0, 1.0, 0.0)),
    ("spine", 0, (0.0, 1.15, 0.0)), ("chest", 1, (0.0, 1.35, 0.0)), ("neck", 2, (0.0, 1.5, 0.0)),
    ("head", 3, (0.0, 1.6, 0.0)),
    ("l_shoulder", 2, (0.04, 1.45, 0.0)), ("l_arm", 5, (0.18, 1.45, 0.0)), ("l_forearm", 6, (0.46, 1.45, 0.0)),
    ("l_hand", 7, (0.7, 1.45, 0.0)),
    ("r_shoulder", 2, (-0.04, 1.45, 0.0)), ("r_arm", 9, (-0.18, 1.45, 0.0)), ("r_forearm", 10, (-0.46, 1.45, 0.0)),
    ("r_hand", 11, (-0.7, 1.45, 0.0)),
    ("l_thigh", 0, (0.1, 0.95, 0.0)), ("l_shin", 13, (0.1, 0.52, 0.0)), ("l_foot", 14, (0.1, 0.09, 0.0)),
    ("l_toes", 15, (0.1, 0.03, 0.14)),
    ("r_thigh", 0, (-0.1, 0.95, 0.0)), ("r_shin", 17, (-0.1, 0.52, 0.0)), ("r_foot", 18, (-0.1, 0.09, 0.0)),
    ("r_toes", 19, (-0.1, 0.03, 0.14)),
)  # fmt: skip
NAMES = [name for name, _, _ in JOINTS]
PARENTS = [parent for _, parent, _ in JOINTS]
REST = np.array([place for _, _, place in JOINTS])
MIRROR = [NAMES.index({"l": "r", "r": "l"}[n[0]] + n[1:] if n[:2] in ("l_", "r_") else n) for n in NAMES]
STYLES = {
    "cmu": "Hips Spine Spine1 Neck1 Head LeftShoulder LeftArm LeftForeArm LeftHand RightShoulder RightArm "
    "RightForeArm RightHand LeftUpLeg LeftLeg LeftFoot LeftToeBase RightUpLeg RightLeg RightFoot RightToeBase",
    "makehuman": "root spine03 spine01 neck01 head clavicle.L upperarm01.L lowerarm01.L wrist.L clavicle.R "
    "upperarm01.R lowerarm01.R wrist.R upperleg01.L lowerleg01.L foot.L toe1-1.L upperleg01.R lowerleg01.R foot.R "
    "toe1-1.R",
    "joints": "Hips Chest Chest2 Neck Head LeftCollar LeftShoulder LeftElbow LeftWrist RightCollar RightShoulder "
    "RightElbow RightWrist LeftHip LeftKnee LeftAnkle LeftToe RightHip RightKnee RightAnkle RightToe",
    "blender": "hips spine chest neck head shoulder.L upper_arm.L forearm.L hand.L shoulder.R upper_arm.R forearm.R "
    "hand.R thigh.L shin.L foot.L toe.L thigh.R shin.R foot.R toe.R",
}  # fmt: skip
STYLES["mixamo"] = " ".join("mixamorig:" + name.replace("Neck1", "Neck") for name in STYLES["cmu"].split())


def write_bvh(
    path: Path, local: np.ndarray, hips: np.ndarray, *, style: str = "cmu", order: str = "ZXY", scale: float = 1.0,
    axes: np.ndarray | None = None, fps: float = 30.0,
) -> Path:  # fmt: skip
    """Local rotations [T 21 3 3] and places of the hips [T 3] as a .bvh whose world axes are ``axes`` times ours."""
    axes = np.eye(3) if axes is None else axes
    names = STYLES[style].split()
    lines = ["HIERARCHY"]

    def put(joint: int, depth: int) -> None:
        tab = "\t" * depth
        offset = REST[joint] - (REST[PARENTS[joint]] if joint else REST[0])
        lines.append(f"{tab}{'JOINT' if joint else 'ROOT'} {names[joint]}")
        lines.append(f"{tab}{{")
        lines.append(f"{tab}\tOFFSET " + " ".join(f"{v:.6f}" for v in axes @ offset * scale))
        place = "" if joint else "Xposition Yposition Zposition "
        lines.append(f"{tab}\tCHANNELS {3 if joint else 6} {place}" + " ".join(f"{axis}rotation" for axis in order))
        children = [child for child, parent in enumerate(PARENTS) if parent == joint]
        order_of_values.append(joint)
        for child in children:
            put(child, depth + 1)
        if not children:
            lines.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET 0 0 0", f"{tab}\t}}"])
        lines.append(f"{tab}}}")

    order_of_values: list[int] = []
    put(0, 0)
    lines += ["MOTION", f"Frames: {len(local)}", f"Frame Time: {1 / fps:.8f}"]
    turned = axes @ local @ axes.T
    angles = Rotation.from_matrix(turned.reshape(-1, 3, 3)).as_euler(order, degrees=True).reshape(len(local), -1, 3)
    for frame in range(len(local)):
        row = list(axes @ hips[frame] * scale)
        row += [value for joint in order_of_values for value in angles[frame, joint]]
        lines.append(" ".join(f"{value:.7g}" for value in row))
    path.write_text("\n".join(lines) + "\n")
    return path


def forward(local: np.ndarray, hips: np.ndarray, rest: np.ndarray = REST, parents: list[int] = PARENTS):
    """World rotations [T S 3 3] and places [T S 3]: 4 x 4 matrices multiplied down the tree."""
    world = np.zeros((*local.shape[:2], 4, 4))
    for joint, parent in enumerate(parents):
        step = np.tile(np.eye(4), (len(local), 1, 1))
        step[:, :3, :3] = local[:, joint]
        step[:, :3, 3] = hips if parent < 0 else rest[joint] - rest[parent]
        world[:, joint] = step if parent < 0 else world[:, parent] @ step
    return world[..., :3, :3], world[..., :3, 3]


def some_motion(frames: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth, moderate rotations of every joint, feet apart from the ground now and then."""
    random = np.random.default_rng(seed)
    phase = np.linspace(0, 2 * np.pi, frames)[:, None, None]
    swing = random.normal(0, 0.35, (1, len(NAMES), 3)) * np.sin(phase + random.uniform(0, 6, (1, len(NAMES), 3)))
    swing[:, [NAMES.index(f"{s}_shoulder") for s in "lr"]] *= 0.3
    local = Rotation.from_rotvec(swing.reshape(-1, 3)).as_matrix().reshape(frames, len(NAMES), 3, 3)
    hips = REST[0] + np.stack([0.1 * np.sin(phase), 0.02 * np.cos(phase), 0.05 * phase], -1)[:, 0, 0]
    return local, hips
