"""The fit on photos made from the model itself, where pose, shape and camera are known."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from hdx_cli.bodies import anny
from hdx_cli.bodies.anny_rig import anny_rig, uncalibrated
from hdx_cli.bodies.base import BodyFit, joint_transforms, posed_vertices
from hdx_cli.bodies.fit import (
    BodyPriors,
    fit_body,
    fit_rig,
    gather_evidence,
    outline_terms,
    posterior_of,
    vertices_in_camera,
)
from hdx_cli.bodies.posterior import Terms
from hdx_cli.bodies.rig import DIRECTIONS, direction_matrix, mirrored_directions, mirrored_landmarks
from hdx_cli.bodies.silhouette import silhouette_of
from hdx_cli.errors import InputRejected, UsageError
from hdx_cli.geometry import rigid_alignment, rotvecs_to_matrices
from hdx_cli.mesh import depth_buffer
from hdx_cli.observation import Keypoints, Observation, Photo

WIDTH, HEIGHT, FOCAL = 360, 480, 720.0
STANDING = {
    "left_shoulder_z": -0.5, "right_shoulder_z": 0.5, "left_elbow": -0.3, "right_elbow": 0.4, "left_hip_x": -0.3,
    "left_knee": 0.5, "head_y": 0.3,
}  # fmt: skip
SITTING = {"left_hip_x": -1.4, "right_hip_x": -1.5, "left_knee": 1.4, "right_knee": 1.3, "left_shoulder_z": -0.4}


@lru_cache
def rig():
    return anny_rig(anny.load(), uncalibrated(), lifting=False)


def observation_of(keypoints: Keypoints) -> Observation:
    """Landmarks in a photo that shows nothing."""
    blank = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    return Observation(Photo(blank, None, FOCAL), blank[..., 0], blank, keypoints)


@lru_cache
def photo_of(pose: str, yaw_rad: float = 0.3, pitch_rad: float = 0.07, crop: bool = False):
    """Observation of a known body, and its true joints in camera axes; landmarks are exact."""
    blank = Keypoints(np.ones((33, 3), np.float32), np.random.default_rng(0).normal(size=(33, 3)).astype(np.float32))
    evidence = gather_evidence(rig(), observation_of(blank), FOCAL, BodyPriors())
    facing_camera = np.diag([1.0, -1.0, -1.0])
    root = (
        rotvecs_to_matrices(np.array([pitch_rad, 0, 0]))
        @ facing_camera
        @ rotvecs_to_matrices(np.array([0, yaw_rad, 0]))
    )
    posterior = posterior_of(rig(), replace(evidence, root_rotation=root), BodyPriors())
    x = posterior.mean.copy()
    for name, value in (STANDING if pose == "standing" else SITTING).items():
        x[rig().pose_names.index(name)] = value
    x[posterior.shape.start + 3] = 0.6
    x[posterior.pitch] = pitch_rad
    x[posterior.translation] = 0.1, -0.1 if not crop else 0.75, 3.4 if not crop else 2.2
    state = posterior.state(x)
    pixels = posterior.project(state.landmarks)
    inside = ((pixels >= 0) & (pixels < (WIDTH, HEIGHT))).all(axis=1)
    confidence = np.where(inside, 1.0, 0.0)[:, None]
    depths = (state.landmarks - state.landmarks[0]) * FOCAL / 3.4
    fine = np.concatenate([pixels, depths[:, 2:]], axis=1).astype(np.float32)
    world = state.landmarks[:33] - state.landmarks[[23, 24]].mean(axis=0)
    keypoints = Keypoints(
        np.concatenate([pixels, confidence], axis=1)[:33].astype(np.float32),
        world.astype(np.float32),
        fine[33:54],
        fine[54:75],
    )
    camera = silhouette_of(np.ones((HEIGHT, WIDTH)), 384.0).camera(FOCAL, WIDTH / 2, HEIGHT / 2)
    covered = depth_buffer(vertices_in_camera(posterior, x), rig().model.faces, camera).covered[24:-24, 24:-24]
    blank_rgb = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    alpha = covered.astype(np.float32)
    return Observation(Photo(blank_rgb, alpha, FOCAL), alpha, blank_rgb, keypoints), state.posed.centres


@lru_cache
def fitted(pose: str, crop: bool = False):
    return fit_rig(rig(), photo_of(pose, crop=crop)[0], BodyPriors())


def joints_in_world(fit: BodyFit) -> np.ndarray:
    model = rig().model
    rest = model.rest(fit.body.shape)
    transforms = joint_transforms(fit.pose.rotations[0], rest.joints, model.parents, fit.pose.translations[0])
    return np.einsum("jab,jb->ja", transforms[:, :3, :3], rest.joints) + transforms[:, :3, 3]


@pytest.mark.parametrize("pose", ["standing", "sitting"])
def test_known_bodies_are_found(pose):
    """With exact measurements the priors alone pull the result away: 20 mm is half the error on detected landmarks."""
    fit, _, _ = fitted(pose)
    found, true = joints_in_world(fit), photo_of(pose)[1]
    assert np.linalg.norm(rigid_alignment(found, true) - true, axis=1).mean() < 0.02
    assert fit.scores["kp_mean_pct"] < 0.5
    assert fit.scores["silhouette_iou"] > 0.93
    assert fit.scores["inside_mask"] > 0.95


@pytest.mark.parametrize("pose", ["standing", "sitting"])
def test_world_frame(pose):
    fit, _, _ = fitted(pose)
    vertices = posed_vertices(rig().model, fit.body, fit.pose)
    assert vertices[:, 1].min() == pytest.approx(0, abs=1e-5)  # float32 metres
    np.testing.assert_allclose(joints_in_world(fit)[0, [0, 2]], 0, atol=1e-5)
    position = fit.camera.positions()[0]
    assert float(position[0]) == pytest.approx(0, abs=1e-5) and float(position[2]) > 1
    assert (fit.camera.width, fit.camera.height) == (WIDTH, HEIGHT)
    viewmat = fit.camera.viewmats[0].numpy()
    np.testing.assert_allclose(viewmat[:3, :3] @ viewmat[:3, :3].T, np.eye(3), atol=1e-6)
    assert viewmat[0, 1] == pytest.approx(0, abs=1e-6)  # no roll: the image's x axis is level


def test_posed_body_projects_exactly_where_the_fit_has_it():
    """A hundredth of a pixel: float32 at 3 m and 720 px of focal length."""
    fit, posterior, x = fitted("standing")
    vertices = posed_vertices(rig().model, fit.body, fit.pose)
    viewmat, K = fit.camera.viewmats[0].double().numpy(), fit.camera.Ks[0].double().numpy()
    projected = (vertices @ viewmat[:3, :3].T + viewmat[:3, 3]) @ K.T
    expected = posterior.project(vertices_in_camera(posterior, x))
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], expected, atol=0.01)


def test_residual_jacobian_equals_differences():
    """Relative to each column's largest entry; float32 blend shapes limit it to 1e-3 for the shape columns."""
    _, posterior, x = fitted("standing")
    generator = np.random.default_rng(0)
    x = x + 0.02 * generator.normal(size=len(x))
    x[posterior.shape] = posterior.mean[posterior.shape] + 0.11  # shapes are linear in pieces: between their kinks
    observation = photo_of("standing")[0]
    outline = outline_terms(posterior, x, silhouette_of(observation.alpha, posterior.evidence.height_px))
    terms, weights = Terms(outline=outline), posterior.robust_weights(x)
    _, jacobian = posterior.residuals(x, weights, terms, with_jacobian=True)
    for index in generator.choice(len(x), 30, replace=False):
        above, below = x.copy(), x.copy()
        above[index] += 1e-3
        below[index] -= 1e-3
        sides = [posterior.residuals(p, weights, terms, with_jacobian=False)[0] for p in (above, below)]
        difference = (sides[0] - sides[1]) / 2e-3
        # limits and the dead zone of the balance have kinks, where one-sided slopes differ
        error = np.abs(jacobian[:, index] - difference) / max(np.abs(difference).max(), 1e-3)
        assert np.quantile(error, 0.995) < 1e-2 and np.median(error) < 1e-3


def test_cropped_legs_stand():
    fit, _, _ = fitted("standing", crop=True)
    joints = dict(zip(rig().model.joint_names, joints_in_world(fit), strict=True))
    for side in "LR":
        hip, knee, foot = (joints[f"{bone}.{side}"] for bone in ("upperleg01", "lowerleg01", "foot"))
        thigh, shin = knee - hip, foot - knee
        bend = np.degrees(np.arccos(thigh @ shin / np.linalg.norm(thigh) / np.linalg.norm(shin)))
        assert bend < 45  # the body behind the photo bends one knee by 38 degrees, the prior none


def test_equal_input_gives_equal_output():
    model, observation = rig().model, photo_of("standing")[0]
    one, two = (fit_body(model, observation, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.pose.rotations, two.pose.rotations)
    np.testing.assert_array_equal(one.body.shape, two.body.shape)


def test_known_height_is_met():
    observation = photo_of("standing")[0]
    for height_m in (1.5, 1.9):
        fit, _, _ = fit_rig(rig(), observation, BodyPriors(height_m=height_m))
        # its own noise is 5 mm; pose and outline pull a little
        assert fit.scores["height_m"] == pytest.approx(height_m, abs=0.03)


def test_priors_are_checked():
    for wrong in ({"gender": "other"}, {"build": "round"}, {"height_m": 17.0}, {"age": -1.0}):
        with pytest.raises(UsageError):
            BodyPriors(**wrong)


def test_unknown_body_model_is_refused():
    model = replace(rig().model, name="nobody")
    with pytest.raises(UsageError, match="nobody"):
        fit_body(model, photo_of("standing")[0])


def test_too_little_of_a_person_is_refused():
    observation = photo_of("standing")[0]
    pixels = observation.keypoints.pixels.copy()
    pixels[5:, 2] = 0
    with pytest.raises(InputRejected, match="5 of 33"):
        fit_body(rig().model, replace(observation, keypoints=replace(observation.keypoints, pixels=pixels)))


def test_mirroring_twice_is_nothing():
    landmarks, (directions, sign) = mirrored_landmarks(), mirrored_directions()
    np.testing.assert_array_equal(landmarks[landmarks], np.arange(len(landmarks)))
    np.testing.assert_array_equal(directions[directions], np.arange(len(DIRECTIONS)))
    np.testing.assert_array_equal(sign * sign[directions], 1)


def test_directions_of_the_lifting_network_replace_the_detectors():
    """A detector whose depths are all wrong is overruled by a network that tells the truth."""
    observation, true = photo_of("standing")
    world = observation.keypoints.world.copy()
    world[25:33, 2] *= -3  # legs bent the wrong way
    wrong = replace(observation, keypoints=replace(observation.keypoints, world=world))

    def lifting(seen, focal_px, directions):
        assert seen is wrong and focal_px == FOCAL
        vectors = (rig_directions @ np.asarray(observation.keypoints.world, float))[: len(directions)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.full_like(directions, 0.02)

    rig_directions = direction_matrix()[:, :33]
    misled, helped = (
        np.linalg.norm(rigid_alignment(joints_in_world(fit), true) - true, axis=1).mean()
        for fit, _, _ in (
            fit_rig(rig(), wrong, BodyPriors()),
            fit_rig(replace(rig(), lifting=lifting), wrong, BodyPriors()),
        )
    )
    assert helped < 0.02  # as with exact measurements
    assert helped < 0.7 * misled


def test_a_network_that_leads_the_body_off_the_person_is_left_out():
    """Directions turned upside down put the body outside of the matte; the fit then goes by the detector alone."""
    observation, true = photo_of("standing")

    def lifting(seen, focal_px, directions):
        return -directions, np.full_like(directions, 0.005)

    alone = fit_rig(rig(), observation, BodyPriors())[0]
    misled = fit_rig(replace(rig(), lifting=lifting), observation, BodyPriors())[0]
    assert misled.scores["silhouette_iou"] >= alone.scores["silhouette_iou"] - 1e-9
    np.testing.assert_allclose(joints_in_world(misled), joints_in_world(alone), atol=1e-6)
