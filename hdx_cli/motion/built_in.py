"""The clips that come with hdx: key values over a cycle, joined by smooth curves, put on a rig by ``figure``.

All of them loop and stay where they are, so that any player can repeat them. ``walk`` and ``run`` are on the spot, as
on a
treadmill: a foot on the ground moves backwards at one speed. ``walk-forward`` travels along +Z with planted feet; it
is the same walk, three cycles long, and does not loop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from .clip import Clip
from .figure import Arm, Figure, Step, placed, turned
from .retarget import Rig

FPS = 30
WALK_FRAMES, WALK_STRIDE = 32, 1.36  # of a cycle of two steps; the stride in leg lengths
RUN_FRAMES, RUN_STRIDE = 21, 2.1
DEG = np.pi / 180


def make(name: str, target: Rig) -> Clip:
    """The built-in clip of a name in ``CLIPS`` on a rig, 30 frames per second."""
    pose, _ = placed(CLIPS[name](), target)
    return Clip(name, pose, float(FPS), name not in STILL and name != "walk-forward")


def _phase(frames: int) -> Float[np.ndarray, "T"]:
    return np.arange(frames) / frames


def _curve(phase: Float[np.ndarray, "T"], *keys: tuple[float, float]) -> Float[np.ndarray, "T"]:
    """A periodic curve through (phase, value) keys without overshoot (Fritsch and Carlson 1980)."""
    from scipy.interpolate import PchipInterpolator

    times, values = np.array(keys, float).T
    return PchipInterpolator(np.concatenate([times - 1, times, times + 1]), np.tile(values, 3))(phase % 1.0)


def _wave(phase: Float[np.ndarray, "T"], amplitude: float = 1.0, shift: float = 0.0, times: int = 1) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * (times * phase - shift))


def _all(value: float | np.ndarray, frames: int) -> Float[np.ndarray, "T"]:
    return np.broadcast_to(np.asarray(value, float), (frames,)).copy()


def _turned(frames: int, pitch=0.0, yaw=0.0, roll=0.0) -> Float[np.ndarray, "T 3 3"]:
    """Rotations from degrees."""
    return turned(*(_all(value, frames) * DEG for value in (pitch, yaw, roll)))


def _vectors(frames: int, *parts: float | np.ndarray) -> np.ndarray:
    return np.stack([_all(part, frames) for part in parts], axis=1)


def _arm(
    frames: int, *, out=12.0, forward=4.0, bend=(0.25, 0.0, 1.0), elbow=18.0, turn=0.0, wrist=6.0, curl=4.0, lift=0.0
):
    """An arm from degrees: ``out`` and ``forward`` raise it from hanging down, sideways and forwards."""
    out, forward = _all(out, frames) * DEG, _all(forward, frames) * DEG
    direction = np.stack([np.sin(out), -np.cos(out) * np.cos(forward), np.cos(out) * np.sin(forward)], axis=1)
    rest = (_all(value, frames) * DEG for value in (elbow, turn, wrist, curl, lift))
    return Arm(direction, _vectors(frames, *bend), *rest)


def _step(frames: int, *, x=0.0, z=0.0, lift=0.0, yaw=0.0, pitch=0.0) -> Step:
    """A foot from leg lengths and degrees."""
    return Step(_vectors(frames, x, z), _all(lift, frames), _all(yaw, frames) * DEG, _all(pitch, frames) * DEG)


def _stand(frames: int = 1) -> Figure:
    """Upright at ease, feet a little apart and turned out."""
    feet = tuple(_step(frames, x=sign * 0.03, yaw=sign * 6.0) for sign in (1, -1))
    level = _turned(frames)
    return Figure(level, level, level, _vectors(frames, 0, 0.99, 0), (_arm(frames), _arm(frames)), feet)


def _with(figure: Figure, **changes: object) -> Figure:
    from dataclasses import replace

    return replace(figure, **changes)


def a_pose() -> Figure:
    arm = _arm(1, out=45.0, forward=0.0, elbow=0.0, wrist=0.0, curl=0.0)
    return _with(_stand(), arms=(arm, arm))


def t_pose() -> Figure:
    arm = _arm(1, out=90.0, forward=0.0, bend=(0.0, 0.0, 1.0), elbow=0.0, wrist=0.0, curl=0.0)
    return _with(_stand(), arms=(arm, arm))


def idle() -> Figure:
    frames = 180
    phase = _phase(frames)
    breath, sway = _wave(phase, times=2), _wave(phase, shift=0.1)
    arms = tuple(
        _arm(
            frames,
            out=13 + 0.8 * breath,
            forward=3 + sign * sway,
            elbow=20 + 1.5 * breath,
            curl=4 + breath,
            lift=1.5 * breath,
        )
        for sign in (1, -1)
    )
    return Figure(
        pelvis=_turned(frames, yaw=1.5 * _wave(phase, shift=0.3), roll=1.2 * sway),
        chest=_turned(frames, pitch=1.0 - 1.4 * breath, yaw=-1.0 * sway, roll=-0.8 * sway),
        head=_turned(
            frames, pitch=1.0 + 0.8 * _wave(phase, shift=0.2), yaw=4.0 * _wave(phase, shift=0.35), roll=-0.5 * sway
        ),
        hips=_vectors(frames, -0.018 * sway, 0.985 + 0.001 * breath, 0.004 * _wave(phase, times=2, shift=0.4)),
        arms=arms,
        feet=_stand(frames).feet,
    )


def wave() -> Figure:
    frames = 60
    phase = _phase(frames)
    swing = _wave(phase, times=3)
    figure = _stand(frames)
    # with the upper arm out to the side the elbow takes the hand from side to side
    right = _arm(
        frames, out=84.0, forward=20.0, bend=(0.0, 1.0, 0.25), elbow=88 + 22 * swing, turn=6 * swing, wrist=-4.0,
        curl=-5.0, lift=12.0,
    )  # fmt: skip
    breath = _wave(phase)
    return _with(
        figure,
        pelvis=_turned(frames, roll=-1.0 + 0.5 * breath),
        chest=_turned(frames, pitch=0.5 * breath, yaw=-4.0, roll=-2.0 + 0.6 * swing),
        head=_turned(frames, yaw=-3.0 + breath, roll=4.0 + breath),
        hips=_vectors(frames, 0.012, 0.985, 0.002 * breath),
        arms=(_arm(frames, out=13 + breath * 0.5, elbow=20.0, curl=4.0), right),
    )


def _walk_step(phase: np.ndarray, travel: np.ndarray, side: int) -> Step:
    """One foot of the walk, on the ground for 0.62 of a cycle; ``travel`` is how far the body has come, leg lengths."""
    phase = phase % 1.0
    strike, off = 0.37, 0.37 - 0.62 * WALK_STRIDE
    stance = strike - phase * WALK_STRIDE
    share = np.clip((phase - 0.62) / 0.38, 0, 1)
    # leaves and meets the ground at the ground's speed: a quintic would, and so does this blend of two cubics
    slope = -WALK_STRIDE * 0.38
    swing = _hermite(share, off, strike, slope, slope)
    z = np.where(phase < 0.62, stance, swing) + travel
    lift = np.where(phase < 0.62, 0.0, 0.085 * np.sin(np.pi * share) ** 1.3)
    pitch = _curve(
        phase,
        (0.0, -18.0),
        (0.08, 0.0),
        (0.34, 0.0),
        (0.5, 18.0),
        (0.62, 46.0),
        (0.7, 40.0),
        (0.86, 2.0),
        (0.93, -14.0),
    )
    return _step(len(phase), x=-side * 0.012, z=z, lift=lift, yaw=side * 4.0, pitch=pitch)


def _hermite(share: np.ndarray, start: float, end: float, start_slope: float, end_slope: float) -> np.ndarray:
    s = share
    return (
        (2 * s**3 - 3 * s**2 + 1) * start + (s**3 - 2 * s**2 + s) * start_slope
        + (3 * s**2 - 2 * s**3) * end + (s**3 - s**2) * end_slope
    )  # fmt: skip


def _walking(frames: int, travels: bool) -> Figure:
    phase = np.arange(frames) / WALK_FRAMES
    travel = WALK_STRIDE * phase if travels else np.zeros(frames)
    # the left foot strikes at phase 0, the right one at 0.5
    fore = np.cos(2 * np.pi * (phase - 0.02))  # 1 when the left leg is in front
    side = _wave(phase, shift=0.05)  # 1 over the left foot
    arms = []
    for sign in (1, -1):
        swing = -sign * np.cos(2 * np.pi * (phase - 0.06))
        elbow = 20 + 11 * -sign * np.cos(2 * np.pi * (phase - 0.12))
        arms.append(
            _arm(
                frames, out=13.0, forward=2 + 22 * swing, bend=(0.1, 0, 1), elbow=elbow, turn=-12.0, curl=8.0, lift=1.0
            )
        )
    return Figure(
        pelvis=_turned(frames, pitch=2.0, yaw=-5.0 * fore, roll=2.5 * side),
        chest=_turned(frames, pitch=2.0, yaw=6.0 * fore, roll=-1.0 * side),
        head=_turned(frames, pitch=2.0 - 0.8 * np.cos(4 * np.pi * (phase - 0.08)), yaw=1.0 * fore),
        hips=_vectors(
            frames,
            0.024 * side,
            0.972 - 0.013 * np.cos(4 * np.pi * (phase - 0.05)),
            travel + 0.008 * _wave(phase, times=2),
        ),
        arms=tuple(arms),
        feet=(_walk_step(phase, travel, 1), _walk_step(phase + 0.5, travel, -1)),
    )


def walk() -> Figure:
    return _walking(WALK_FRAMES, travels=False)


def walk_forward() -> Figure:
    return _walking(3 * WALK_FRAMES + 1, travels=True)


def _run_step(phase: np.ndarray, side: int) -> Step:
    """One foot of the run: on the ground for 0.36 of a cycle, then up behind, under the hips and forward."""
    phase = phase % 1.0
    strike, off = 0.30, 0.30 - 0.36 * RUN_STRIDE
    stance = strike - phase * RUN_STRIDE
    share = np.clip((phase - 0.36) / 0.64, 0, 1)
    slope = -RUN_STRIDE * 0.64
    z = np.where(phase < 0.36, stance, _hermite(share, off, strike, 0.55 * slope, 0.8 * slope))
    lift = _curve(phase, (0.0, 0.0), (0.36, 0.0), (0.48, 0.22), (0.6, 0.36), (0.72, 0.26), (0.86, 0.13), (0.95, 0.045))
    pitch = _curve(
        phase, (0.0, -6.0), (0.06, 0.0), (0.16, 0.0), (0.28, 28.0), (0.36, 55.0), (0.5, 88.0), (0.62, 70.0),
        (0.78, 10.0), (0.9, -8.0),
    )  # fmt: skip
    return _step(len(phase), x=-side * 0.03, z=z, lift=lift, yaw=side * 2.0, pitch=pitch)


def run() -> Figure:
    frames = RUN_FRAMES
    phase = _phase(frames)
    fore, side = np.cos(2 * np.pi * (phase - 0.0)), _wave(phase, shift=-0.07)
    arms = []
    for sign in (1, -1):
        swing = -sign * np.cos(2 * np.pi * (phase - 0.03))
        arms.append(
            _arm(
                frames,
                out=17.0,
                forward=-8 + 38 * swing,
                bend=(-0.08, 0, 1),
                elbow=92 + 14 * swing,
                turn=35.0,
                curl=24.0,
                lift=3.0,
            )
        )
    return Figure(
        pelvis=_turned(frames, pitch=9.0, yaw=-8.0 * fore, roll=2.5 * side),
        chest=_turned(frames, pitch=11.0, yaw=11.0 * fore, roll=-1.5 * side),
        head=_turned(frames, pitch=5.0, yaw=1.5 * fore),
        hips=_vectors(frames, 0.012 * side, 0.955 - 0.04 * np.cos(4 * np.pi * (phase - 0.17)), 0.0),
        arms=tuple(arms),
        feet=(_run_step(phase, 1), _run_step(phase + 0.5, -1)),
    )


def jumping_jack() -> Figure:
    frames = 40
    phase = _phase(frames)
    # apart lands at 0.38, together lands at 0.88; the body is in the air before both
    apart = _curve(phase, (0.0, 0.0), (0.14, 0.0), (0.38, 1.0), (0.62, 1.0), (0.88, 0.0))
    lift = np.where((phase > 0.14) & (phase < 0.38), _hop((phase - 0.14) / 0.24), 0.0)
    lift += np.where((phase > 0.62) & (phase < 0.88), _hop((phase - 0.62) / 0.26), 0.0)
    raised = _curve(phase, (0.03, 0.0), (0.2, 0.3), (0.42, 1.0), (0.55, 1.0), (0.74, 0.4), (0.93, 0.0))
    crouch = _curve(
        phase, (0.04, 1.0), (0.15, 0.1), (0.26, 0.0), (0.36, 0.1), (0.48, 1.0), (0.62, 0.1), (0.75, 0.0), (0.86, 0.1)
    )
    out = 10 + 148 * raised
    # the upper arm turns outwards on its way up, so that the palms meet
    bend = (0.15 - 0.95 * raised, 0.35 * np.sin(np.pi * raised), 1 - 0.55 * raised)
    arm = _arm(
        frames, out=out, forward=4.0, bend=bend, elbow=16 + 16 * raised, wrist=4.0, curl=6.0, lift=26 * raised**2
    )
    feet = tuple(
        _step(
            frames,
            x=sign * (0.02 + 0.34 * apart),
            lift=lift,
            yaw=sign * (5 + 10 * apart),
            pitch=14 * np.clip(lift / 0.05, 0, 1),
        )
        for sign in (1, -1)
    )
    level = _turned(frames, pitch=3 + 3 * crouch)
    height = 0.985 - 0.05 * crouch - 0.055 * apart + lift
    return Figure(level, level, _turned(frames, pitch=2 * crouch), _vectors(frames, 0, height, 0), (arm, arm), feet)


def _hop(share: np.ndarray) -> np.ndarray:
    return 0.1 * 4 * share * (1 - share)


def squat() -> Figure:
    frames = 90
    phase = _phase(frames)
    down = _curve(phase, (0.0, 0.0), (0.08, 0.0), (0.45, 1.0), (0.55, 1.0), (0.92, 0.0))
    arm = _arm(
        frames, out=12.0, forward=4 + 106 * down, bend=(0.3 - 0.3 * down, 0.35 * down, 1 - 0.3 * down), 
        elbow=16 - 6 * down, turn=35 * down, wrist=5.0, curl=12.0, lift=4 * down,
    )  # fmt: skip
    feet = tuple(_step(frames, x=sign * 0.13, yaw=sign * 18.0) for sign in (1, -1))
    return Figure(
        pelvis=_turned(frames, pitch=2 + 26 * down),
        chest=_turned(frames, pitch=2 + 30 * down),
        head=_turned(frames, pitch=10 * down),
        hips=_vectors(frames, 0, 0.965 - 0.46 * down, -0.2 * down),
        arms=(arm, arm),
        feet=feet,
    )


def turn() -> Figure:
    """Once round to the left in twelve small steps, each foot every other time."""
    frames, steps = 168, 6
    phase = _phase(frames)
    heading = 360.0 * phase
    feet, lifted = [], []
    for side, shift in ((1, 0.0), (-1, 0.5)):
        beat = phase * steps + shift  # a foot steps once a beat, in its first 0.4
        share = np.clip((beat % 1.0) / 0.42, 0, 1)
        # leads and lags the body by the same half step
        yaw = (np.floor(beat) + share * share * (3 - 2 * share) - shift - 0.2) * 360.0 / steps
        lift = 0.05 * np.sin(np.pi * share) ** 2
        angle = yaw * DEG
        base = side * 0.03  # where the foot stands beside the axis, less its stance
        x, z = base * np.cos(angle), -base * np.sin(angle)
        feet.append((x, z, lift, yaw + side * 5.0))
        lifted.append(lift)
    sway = _smooth(lifted[1] - lifted[0]) / 0.05
    step = tuple(_step(frames, x=x, z=z, lift=lift, yaw=yaw, pitch=180 * lift) for x, z, lift, yaw in feet)
    across = 0.035 * sway
    arms = tuple(_arm(frames, out=14.0, forward=3 + 4 * sign * sway, elbow=24.0, curl=6.0) for sign in (1, -1))
    return Figure(
        pelvis=_turned(frames, pitch=1.0, yaw=heading, roll=1.5 * sway),
        chest=_turned(frames, pitch=2.0, yaw=heading + 5.0),
        head=_turned(frames, pitch=2.0, yaw=heading + 14.0),
        hips=_vectors(
            frames,
            across * np.cos(heading * DEG),
            0.972 + 0.004 * np.cos(4 * np.pi * phase * steps),
            -across * np.sin(heading * DEG),
        ),
        arms=arms,
        feet=step,
    )


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Mean over a window of a periodic series."""
    padded = np.concatenate([values[-(width // 2) :], values, values[: width // 2]])
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def dance() -> Figure:
    """Eight beats from leg to leg with swinging hips: four with pumping arms, four with raised ones."""
    frames = 128
    phase = _phase(frames)
    beats = phase * 8
    side = _smooth(_smooth(np.where((beats % 4) < 2, 1.0, -1.0), 17), 9)  # the leg that carries, two beats each
    bounce = 0.5 - 0.5 * np.cos(2 * np.pi * beats)
    swing = np.sin(np.pi * beats)
    up = _curve(phase, (0.02, 0.0), (0.44, 0.0), (0.56, 1.0), (0.92, 1.0))
    feet = []
    for sign in (1, -1):
        free = np.clip(-sign * side, 0, 1)  # its heel taps while the other leg carries
        feet.append(_step(frames, x=sign * 0.13, yaw=sign * 12.0, pitch=26 * free * (0.55 + 0.45 * bounce)))
    arms = []
    for sign in (1, -1):
        pump = sign * swing
        arms.append(
            _arm(
                frames, out=22 + 62 * up + 8 * up * pump, forward=(8 + 24 * pump) * (1 - up) + 24 * up,
                bend=(-0.3 + 0.4 * up + 0.25 * up * swing * sign, 1.0 * up, 1 - 0.75 * up), 
                elbow=82 + 14 * pump + 10 * up, turn=30 * (1 - up), curl=28 - 14 * up, lift=2 + 14 * up,
            )
        )  # fmt: skip
    return Figure(
        pelvis=_turned(frames, pitch=3.0, yaw=7 * swing, roll=-8.0 * side),
        chest=_turned(frames, pitch=2 + 3 * bounce, yaw=-9 * swing, roll=4.0 * side),
        head=_turned(frames, pitch=4 * bounce, yaw=6 * side, roll=-3 * side),
        hips=_vectors(frames, 0.12 * side, 0.945 - 0.04 * bounce, -0.01 * bounce),
        arms=tuple(arms),
        feet=tuple(feet),
    )


STILL = ("a-pose", "t-pose")
CLIPS: dict[str, Callable[[], Figure]] = {
    "a-pose": a_pose,
    "t-pose": t_pose,
    "idle": idle,
    "wave": wave,
    "walk": walk,
    "walk-forward": walk_forward,
    "run": run,
    "jumping-jack": jumping_jack,
    "squat": squat,
    "turn": turn,
    "dance": dance,
}
