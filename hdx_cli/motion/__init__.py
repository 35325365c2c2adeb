"""Motion clips for an avatar's rig: built-in ones, and files of motion capture put on its skeleton."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from ..bodies.base import RestBody
    from .clip import Clip

BUILT_IN: dict[str, str] = {
    "a-pose": "standing, straight arms half way down",
    "t-pose": "standing, arms straight out to the sides",
    "idle": "breathing and shifting weight, 6 s",
    "wave": "waving with the right hand, 2 s",
    "walk": "walking on the spot, as on a treadmill, 1.1 s",
    "walk-forward": "three cycles of walking forward with planted feet, 3.2 s",
    "run": "running on the spot, as on a treadmill, 0.7 s",
    "jumping-jack": "jumping with arms and legs apart and together, 1.3 s",
    "squat": "down to a deep squat and up again, 3 s",
    "turn": "once round on the spot in small steps, 5.6 s",
    "dance": "swinging hips and arms to eight beats, 4.3 s",
}
FILES = ".bvh, .npz (AMASS, SMPL, SMPL-X), .smpl, .json, a folder of .json; .pkl and .pt with --allow-pickle"


def load(
    source: str,
    rest: RestBody,
    parents: np.ndarray,
    joint_names: tuple[str, ...],
    *,
    fps: float | None = None,
    speed: float = 1.0,
    frames: tuple[int, int] | None = None,
    allow_pickle: bool = False,
) -> Clip:
    """A clip on the rig of an avatar.

    Args:
        source: the name of a built-in clip (a key of ``BUILT_IN``), or the path of a file or folder (``FILES``).
        rest, parents, joint_names: the rig; the vertices of ``rest`` may be empty.
        fps: frames per second of the result; the clip's own where None.
        speed: how many times as fast.
        frames: only frames first up to, but not including, last of the clip at its own rate, counted from 0; feet are
            put on the ground, and the root over the origin, for that part alone.
        allow_pickle: read .pkl, .pth and .pt files: their arrays alone, nothing in them is run.

    Raises:
        UsageError: an unknown name, or a rate, speed or part that cannot be.
        InputRejected: a file that is damaged, too large, or not the motion of a known skeleton.
    """
    from pathlib import Path

    from ..errors import UsageError
    from . import built_in
    from .clip import MAX_FRAMES, Clip, part, resampled
    from .retarget import cut, retarget, rig

    target = rig(rest, parents, joint_names)
    if source in BUILT_IN:
        clip = built_in.make(source, target)
    else:
        path = Path(source)
        try:
            there = bool(source) and path.exists()
        except (OSError, ValueError):  # too long, or with a character that no name has
            there = False
        if not there:
            raise UsageError(
                f"--motion {source[:200]!r}: neither a file nor one of {', '.join(BUILT_IN)}",
                hint="hdx motions",
                code="E_MOTION",
            )
        from .files import read
        from .smpl import on_own_joints

        motion = cut(read(path, allow_pickle), frames, str(path), MAX_FRAMES)
        motion = on_own_joints(motion, rest.joints, joint_names)
        frames = None
        clip = Clip(path.stem, retarget(motion, target, str(path)), motion.fps, False)
    if frames is not None:
        clip = part(clip, *frames)
    return resampled(clip, fps, speed)
