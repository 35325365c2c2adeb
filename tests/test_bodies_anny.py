"""The baked Anny body against what Anny itself computes, and what must hold for any body model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hdx_cli.bodies import anny
from hdx_cli.bodies.base import PARTS, Body, BodyPose, joint_transforms, posed_vertices, skin

GOLDEN = np.load(Path(__file__).parent / "data" / "anny_golden.npz")
CASES = range(len(GOLDEN["shapes"]))


@lru_cache
def body() -> anny.AnnyBody:
    return anny.load()


def pose_of(rotations: np.ndarray, translation=(0, 0, 0)) -> BodyPose:
    return BodyPose(rotations[None].astype(np.float32), np.array([translation], np.float32))


@pytest.mark.parametrize("case", CASES)
def test_own_evaluation_equals_anny(case):
    """With unrounded blend shapes only float32 sums of some hundred terms of up to 1 m differ: 1e-5 m."""
    model, kept = body(), GOLDEN["kept"]
    coefficients = model.coefficients(GOLDEN["shapes"][case]).astype(np.float32)
    vertices = GOLDEN["template"] + np.tensordot(coefficients, GOLDEN["blend"], 1)
    rest = model.rest(GOLDEN["shapes"][case])
    np.testing.assert_allclose(rest.joints, GOLDEN["rest_joints"][case], atol=1e-5)
    transforms = joint_transforms(GOLDEN["pose_deltas"][case], rest.joints, model.parents, GOLDEN["translations"][case])
    posed, _ = skin(vertices, model.weights[kept], transforms)
    np.testing.assert_allclose(posed, GOLDEN["vertices"][case], atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_asset_rounding_stays_below_its_promise(case):
    """The asset promises 0.6 mm at the worst vertex; these shapes are drawn as in the bake tool."""
    shape = GOLDEN["shapes"][case]
    pose = BodyPose(GOLDEN["pose_deltas"][case : case + 1], GOLDEN["translations"][case : case + 1])
    posed = posed_vertices(body(), Body("anny", shape), pose)
    assert np.linalg.norm(posed[GOLDEN["kept"]] - GOLDEN["vertices"][case], axis=1).max() < 6e-4


def test_model_is_well_formed():
    model = body()
    assert all(parent < joint for joint, parent in enumerate(model.parents)) and model.parents[0] == -1
    assert len(model.shape_names) == len(model.default_shape) == len(set(model.shape_names))
    assert len(model.joint_names) == len(model.parents) == model.weights.shape[1]
    np.testing.assert_allclose(model.weights.sum(axis=1), 1, atol=1e-5)  # nine float32 weights
    assert set(np.unique(model.parts)) == set(range(len(PARTS)))


def test_rest_body_stands_upright_and_faces_plus_z():
    model = body()
    rest = model.rest(model.default_shape)
    joints = dict(zip(model.joint_names, rest.joints, strict=True))
    assert joints["head"][1] > joints["root"][1] > joints["foot.L"][1]
    assert joints["upperarm01.L"][0] > joints["upperarm01.R"][0]
    assert joints["toe1-1.L"][2] > joints["foot.L"][2]
    corners = rest.vertices[model.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = (corners[:, 0] * normals).sum() / 6
    assert 0.05 < volume < 0.12  # outward triangles give a positive volume; people measure 50 to 120 litres


def test_body_is_mirror_symmetric():
    model = body()
    joints = dict(zip(model.joint_names, model.rest(model.default_shape).joints, strict=True))
    for name, joint in joints.items():
        if name.endswith(".L"):
            # MakeHuman's mesh is modelled symmetric to about a hundredth of a millimetre; 1 mm is ample
            np.testing.assert_allclose(joint * (-1, 1, 1), joints[name[:-1] + "R"], atol=1e-3)


def test_parts_are_on_their_side_of_the_body():
    model = body()
    heights = model.rest(model.default_shape).vertices[:, 1]
    mean_heights = [heights[model.parts == PARTS.index(part)].mean() for part in ("foot", "lower_leg", "upper_leg")]
    mean_heights += [heights[model.parts == PARTS.index(part)].mean() for part in ("torso", "neck", "head")]
    assert mean_heights == sorted(mean_heights)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_root_motion_is_rigid(seed):
    model = body()
    generator = np.random.default_rng(seed)
    rotations = np.tile(np.eye(3), (len(model.parents), 1, 1))
    rotations[0] = Rotation.random(random_state=generator.integers(2**31)).as_matrix()
    translation = generator.normal(size=3)
    rest = model.rest(model.default_shape)
    moved = posed_vertices(model, Body("anny", model.default_shape), pose_of(rotations, translation))
    expected = (rest.vertices - rest.joints[0]) @ rotations[0].T + rest.joints[0] + translation
    np.testing.assert_allclose(moved, expected, atol=2e-5)  # float32 at 3 m


@pytest.mark.parametrize("coefficient", ["gender", "age", "height", "waist_girth", "foot_size"])
def test_coefficients_jacobian_matches_differences(coefficient):
    model = body()
    shape = np.array([0.3, 0.7, 0.6, 0.4, 0.6, 0.4, *np.linspace(-0.5, 0.6, len(model.default_shape) - 6)])
    index = model.shape_names.index(coefficient)
    above, below = shape.copy(), shape.copy()
    above[index] += 1e-4
    below[index] -= 1e-4
    difference = (model.coefficients(above) - model.coefficients(below)) / 2e-4
    # both are differences of a product of linear pieces; the steps differ
    np.testing.assert_allclose(model.coefficients_jacobian(shape)[:, index], difference, atol=1e-6)


def test_taller_phenotype_is_taller():
    model = body()
    heights = []
    for height in (0.2, 0.5, 0.8):
        shape = model.default_shape.copy()
        shape[model.shape_names.index("height")] = height
        heights.append(np.ptp(model.rest(shape).vertices[:, 1]))
    assert heights == sorted(heights) and 1.5 < heights[1] < 2.0
