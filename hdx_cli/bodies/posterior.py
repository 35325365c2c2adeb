"""The posterior of a body given one photo, as residuals in units of their noise, and its maximum.

Everything happens in camera axes (x right, y down, z away, metres). The parameters [D + S + 4] are the pose, the shape,
the camera's pitch (how far it looks down, radians) and the translation of the root.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from .kinematics import Posed, RiggedPoints, pose_skeleton, posed_points, posed_points_jacobian
from .rig import LANDMARKS, POSE_LANDMARKS, TORSO, FitRig, direction_matrix

FEET = [29, 30, 31, 32]  # heels and toes among the landmarks
# Beyond these shares of the height a landmark is more likely wrong than unlucky; hands and faces are small.
LANDMARK_REACH = np.where(np.arange(LANDMARKS) < POSE_LANDMARKS, 0.05, 0.02)
DIRECTION_REACH = 0.9
UPRIGHT_REACH_RAD = 0.15  # beyond, somebody bends, runs or leans on something
UPRIGHT_SIGMA_RAD = 0.06
BALANCE_SIGMA_M = 0.05
BALANCE_REACH_M = 0.25
LIMIT_SIGMA_RAD = 0.05
SHAPE_LIMIT_SIGMA = 0.03
# The priors' spreads are those of anybody in any pose; most photos show less.
PRIOR_SCALE = 0.7
# Errors of neighbouring directions and landmarks are correlated: what N of them tell is less than N times one.
DIRECTION_SCALE = 2.5


@dataclass(frozen=True)
class Evidence:
    """What was measured in one photo.

    Attributes:
        focal_px, cx, cy: the camera.
        height_px: body height in px that residuals are measured by.
        pixels, confidence: the landmarks [L 2], [L] (0 = not seen).
        directions, direction_sigma, direction_confidence: calibrated directions in camera axes [N 3], [N 3], [N].
        root_rotation: first guess of the body's axes in the camera [3 3].
        balanced, upright: whether the person can be taken to stand on their feet; to hold their trunk upright.
        height_m, height_sigma_m: what is known of the person's height.
    """

    focal_px: float
    cx: float
    cy: float
    height_px: float
    pixels: Float[np.ndarray, "L 2"]
    confidence: Float[np.ndarray, "L"]
    directions: Float[np.ndarray, "N 3"]
    direction_sigma: Float[np.ndarray, "N 3"]
    direction_confidence: Float[np.ndarray, "N"]
    root_rotation: Float[np.ndarray, "3 3"]
    balanced: bool
    upright: bool
    height_m: float
    height_sigma_m: float


@dataclass(frozen=True)
class OutlineTerms:
    """Body vertices that should lie on lines: ``index`` into ``points``, a point on the line, its normal, a weight."""

    points: RiggedPoints
    index: Int[np.ndarray, "M"]
    targets: Float[np.ndarray, "M 2"]
    normals: Float[np.ndarray, "M 2"]
    weights: Float[np.ndarray, "M"]


@dataclass(frozen=True)
class Terms:
    """Which measurements count at the moment."""

    landmarks: bool = True
    directions: bool = True
    gravity: bool = True
    outline: OutlineTerms | None = None


@dataclass(frozen=True)
class State:
    """A body at one parameter vector."""

    coefficients: Float[np.ndarray, "K"]
    joints: Float[np.ndarray, "J 3"]
    posed: Posed
    landmarks: Float[np.ndarray, "L 3"]


@dataclass
class Posterior:
    """Residuals and their Jacobian for a rig and the evidence; ``mean`` and ``sigma`` are the prior's."""

    rig: FitRig
    evidence: Evidence
    mean: Float[np.ndarray, "n"]
    sigma: Float[np.ndarray, "n"]
    limits: Float[np.ndarray, "n 2"]
    limit_sigma: Float[np.ndarray, "n"]
    direction_matrix: Float[np.ndarray, "N L"] = field(default_factory=direction_matrix)

    @property
    def pose(self) -> slice:
        return slice(0, len(self.rig.pose_mean))

    @property
    def shape(self) -> slice:
        return slice(self.pose.stop, self.pose.stop + len(self.rig.shape_mean))

    @property
    def pitch(self) -> int:
        return self.shape.stop

    @property
    def translation(self) -> slice:
        return slice(self.pitch + 1, self.pitch + 4)

    def state(self, x: Float[np.ndarray, "n"]) -> State:
        """The body at ``x``."""
        rig = self.rig
        coefficients = rig.coefficients(x[self.shape])
        joints = rig.joints + np.tensordot(coefficients, rig.joints_blend, 1)
        rotvecs = rig.rotvecs(x[self.pose])
        posed = pose_skeleton(
            rotvecs, self.evidence.root_rotation, joints, x[self.translation], np.asarray(rig.model.parents)
        )
        return State(coefficients, joints, posed, posed_points(rig.landmarks, coefficients, posed))

    def jacobian_of(self, x: Float[np.ndarray, "n"], state: State):
        """A function from rigged points to d points / d parameters [P 3 n]."""
        rig = self.rig
        coefficients_jacobian = rig.coefficients_jacobian(x[self.shape])
        blend = rig.joints_blend.reshape(len(rig.joints_blend), -1)
        joints_jacobian = (blend.T @ coefficients_jacobian).reshape(*rig.joints.shape, -1)

        def jacobian(points: RiggedPoints) -> Float[np.ndarray, "P 3 n"]:
            full = np.zeros((points.count, 3, len(x)))
            full[:, :, : self.pitch] = posed_points_jacobian(
                points, state.coefficients, coefficients_jacobian, state.posed, joints_jacobian,
                rig.pose_basis, np.asarray(rig.model.parents),
            )  # fmt: skip
            full[:, range(3), range(self.translation.start, self.translation.stop)] = 1
            return full

        return jacobian

    def project(self, points: Float[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 2"]:
        """Pixels of points in camera axes."""
        e = self.evidence
        return points[:, :2] / points[:, 2:] * e.focal_px + (e.cx, e.cy)

    def project_jacobian(
        self, points: Float[np.ndarray, "P 3"], jacobian: Float[np.ndarray, "P 3 n"]
    ) -> Float[np.ndarray, "P 2 n"]:
        """d pixels / d parameters."""
        slope = (points[:, :2] / points[:, 2:])[..., None]
        return self.evidence.focal_px / points[:, 2, None, None] * (jacobian[:, :2] - slope * jacobian[:, 2:])

    def directions(self, landmarks: Float[np.ndarray, "L 3"]) -> Float[np.ndarray, "N 3"]:
        """Unit directions between the body's landmarks."""
        vectors = self.direction_matrix @ landmarks
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def robust_weights(self, x: Float[np.ndarray, "n"]) -> dict[str, np.ndarray]:
        """Square-root weights of a Geman-McClure loss, c^2 / (c^2 + e^2), at ``x``; held during one step."""
        e, state = self.evidence, self.state(x)
        error = np.linalg.norm(self.project(state.landmarks) - e.pixels, axis=1) / e.height_px
        directions = self.directions(state.landmarks)
        turned = np.linalg.norm(directions - e.directions, axis=1)
        lean = _forward(x[self.pitch]) @ directions[TORSO]
        centre = posed_points(self.rig.centre_of_mass, state.coefficients, state.posed)[0]
        over = _over_feet(centre, state.landmarks[FEET], x[self.pitch])[0]
        return {
            "landmarks": e.confidence * LANDMARK_REACH**2 / (LANDMARK_REACH**2 + error**2),
            "directions": e.direction_confidence * DIRECTION_REACH**2 / (DIRECTION_REACH**2 + turned**2),
            "upright": UPRIGHT_REACH_RAD**2 / (UPRIGHT_REACH_RAD**2 + lean**2),
            "balance": BALANCE_REACH_M**2 / (BALANCE_REACH_M**2 + over**2),
        }

    def residuals(
        self, x: Float[np.ndarray, "n"], weights: dict[str, np.ndarray], terms: Terms, with_jacobian: bool
    ) -> tuple[Float[np.ndarray, "R"], Float[np.ndarray, "R n"] | None]:
        """All residuals at ``x``, and their Jacobian if asked for."""
        e, rig = self.evidence, self.rig
        state = self.state(x)
        jacobian = self.jacobian_of(x, state) if with_jacobian else None
        landmarks_jacobian = jacobian(rig.landmarks) if with_jacobian else None
        rows: list[tuple[np.ndarray, np.ndarray | None]] = []
        if terms.landmarks:
            seen = np.flatnonzero(weights["landmarks"] > 0)
            scale = (weights["landmarks"] / (e.height_px * rig.calibration.sigma))[seen, None]
            points = state.landmarks[seen]
            value = (self.project(points) - e.pixels[seen]) * scale
            slope = None
            if with_jacobian:
                slope = self.project_jacobian(points, landmarks_jacobian[seen]) * scale[..., None]
            rows.append((value, slope))
        if terms.directions:
            rows.append(self._direction_rows(state, weights["directions"], landmarks_jacobian))
        if terms.gravity:
            rows += self._gravity_rows(x, state, weights, jacobian, landmarks_jacobian)
        if terms.outline is not None:
            rows.append(self._outline_rows(state, terms.outline, jacobian))
        rows += self._prior_rows(x, state, jacobian)
        values = np.concatenate([value.reshape(-1) for value, _ in rows])
        if not with_jacobian:
            return values, None
        return values, np.concatenate([slope.reshape(-1, len(x)) for _, slope in rows])

    def _direction_rows(self, state: State, weights, landmarks_jacobian):
        e = self.evidence
        seen = np.flatnonzero(weights > 0)
        matrix = self.direction_matrix[seen]
        vectors = matrix @ state.landmarks
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-9
        units = vectors / lengths
        scale = weights[seen, None] / (e.direction_sigma[seen] * DIRECTION_SCALE)
        value = (units - e.directions[seen]) * scale
        if landmarks_jacobian is None:
            return value, None
        slope = np.tensordot(matrix, landmarks_jacobian, 1)
        along = np.einsum("nd,ndk->nk", units, slope)
        slope = (slope - units[..., None] * along[:, None]) / lengths[..., None]
        return value, slope * scale[..., None]

    def _gravity_rows(self, x, state: State, weights, jacobian, landmarks_jacobian):
        """The trunk stands upright, and the centre of mass lies over the feet along the line of sight."""
        e, pitch = self.evidence, x[self.pitch]
        forward, forward_slope = _forward(pitch), _forward_slope(pitch)
        rows = []
        if e.upright:
            vector = self.direction_matrix[TORSO] @ state.landmarks
            length = np.linalg.norm(vector)
            unit, scale = vector / length, weights["upright"] / UPRIGHT_SIGMA_RAD
            slope = None
            if jacobian is not None:
                change = np.tensordot(self.direction_matrix[TORSO], landmarks_jacobian, 1)
                change = (change - np.outer(unit, unit @ change)) / length
                slope = forward @ change * scale
                slope[self.pitch] += forward_slope @ unit * scale
            rows.append((np.array([forward @ unit * scale]), slope))
        if e.balanced:
            centre = posed_points(self.rig.centre_of_mass, state.coefficients, state.posed)[0]
            over, foot = _over_feet(centre, state.landmarks[FEET], pitch)
            scale = weights["balance"] / BALANCE_SIGMA_M
            slope = None
            if jacobian is not None:
                slope = np.zeros(len(x))
                if over != 0:
                    change = jacobian(self.rig.centre_of_mass)[0] - landmarks_jacobian[FEET[foot]]
                    slope = forward @ change * scale
                    slope[self.pitch] += forward_slope @ (centre - state.landmarks[FEET[foot]]) * scale
            rows.append((np.array([over * scale]), slope))
        return rows

    def _outline_rows(self, state: State, outline: OutlineTerms, jacobian):
        vertices = posed_points(outline.points, state.coefficients, state.posed)
        scale = outline.weights / self.evidence.height_px
        apart = self.project(vertices)[outline.index] - outline.targets
        value = (apart * outline.normals).sum(axis=1) * scale
        if jacobian is None:
            return value, None
        slopes = self.project_jacobian(vertices, jacobian(outline.points))[outline.index]
        return value, np.einsum("md,mdk->mk", outline.normals * scale[:, None], slopes)

    def _prior_rows(self, x, state: State, jacobian):
        spread = self.sigma * PRIOR_SCALE
        over = np.maximum(x - self.limits[:, 1], 0) - np.maximum(self.limits[:, 0] - x, 0)
        height, height_slope = self.height_m(x)
        scale = 1 / self.evidence.height_sigma_m
        with_slopes = jacobian is not None
        return [
            ((x - self.mean) / spread, np.diag(1 / spread) if with_slopes else None),
            (over / self.limit_sigma, np.diag((over != 0) / self.limit_sigma) if with_slopes else None),
            (np.array([(height - self.evidence.height_m) * scale]), height_slope * scale if with_slopes else None),
        ]

    def height_m(self, x: Float[np.ndarray, "n"]) -> tuple[float, Float[np.ndarray, "n"]]:
        """Standing height in the rest pose, and its derivative."""
        points = self.rig.top_and_sole
        pick = np.array([1.0, *[-1 / (points.count - 1)] * (points.count - 1)])
        share = np.bincount(points.source, pick[points.point] * points.weight, len(points.rest))
        vertical = points.blend[:, :, 1] @ share
        coefficients = self.rig.coefficients(x[self.shape])
        slope = np.zeros(len(x))
        slope[self.shape] = vertical @ self.rig.coefficients_jacobian(x[self.shape])
        return float(share @ points.rest[:, 1] + coefficients @ vertical), slope

    def maximise(
        self, x: Float[np.ndarray, "n"], free: Bool[np.ndarray, "n"], terms: Terms, steps: int
    ) -> Float[np.ndarray, "n"]:
        """Levenberg-Marquardt over the free parameters, with robust weights renewed at every step."""
        damping, index = 1e-2, np.flatnonzero(free)
        for _ in range(steps):
            weights = self.robust_weights(x)
            value, slope = self.residuals(x, weights, terms, with_jacobian=True)
            slope = slope[:, index]
            hessian, gradient, cost = slope.T @ slope, slope.T @ value, value @ value
            for _ in range(6):
                damped = hessian + damping * np.diag(np.diag(hessian) + 1e-6)
                trial = x.copy()
                trial[index] -= np.linalg.solve(damped, gradient)
                trial_value, _ = self.residuals(trial, weights, terms, with_jacobian=False)
                trial_cost = trial_value @ trial_value
                if np.isfinite(trial_cost) and trial_cost < cost:
                    break
                damping *= 5
            else:
                return x
            x, damping = trial, max(damping / 4, 1e-5)
            if cost - trial_cost < 1e-4 * cost:
                break
        return x


def _forward(pitch: float) -> Float[np.ndarray, "3"]:
    """The horizontal direction away from a camera that looks down by ``pitch``, in its own axes."""
    return np.array([0.0, -np.sin(pitch), np.cos(pitch)])


def _forward_slope(pitch: float) -> Float[np.ndarray, "3"]:
    return np.array([0.0, -np.cos(pitch), -np.sin(pitch)])


def _over_feet(centre, feet: Float[np.ndarray, "F 3"], pitch: float) -> tuple[float, int]:
    """How far the centre of mass lies behind (+) or before (-) the feet in metres, 0 over them, and the foot point."""
    depths, depth = feet @ _forward(pitch), centre @ _forward(pitch)
    if depth > depths.max():
        return float(depth - depths.max()), int(depths.argmax())
    if depth < depths.min():
        return float(depth - depths.min()), int(depths.argmin())
    return 0.0, 0
