"""SMPL and SMPL-X bodies: against the smplx package itself, on model files that are made here in the real format."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import smpl_files as made
import torch
from scipy import sparse

from hdx_cli import bodies
from hdx_cli.bodies import anny, fit, smpl_body, smpl_files, smpl_rig, store
from hdx_cli.bodies.anny_rig import anny_rig
from hdx_cli.bodies.base import PARTS, Body, BodyModel, BodyPose, posed_vertices
from hdx_cli.bodies.kinematics import pose_skeleton, posed_points, posed_points_jacobian
from hdx_cli.errors import InputRejected, UsageError
from hdx_cli.geometry import rotvecs_to_matrices


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each family, SMPLX_NEUTRAL.npz and SMPL_FEMALE.npz."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "smplx": made.write_npz(folder / "SMPLX_NEUTRAL.npz", "smplx"),
        "smpl": made.write_npz(folder / "SMPL_FEMALE.npz", "smpl"),
    }


@pytest.fixture(scope="module")
def added(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "bodies"
    return {family: store.add(path, folder=folder) for family, path in files.items()}


@pytest.fixture(scope="module")
def models(added):
    return {family: smpl_body.load(one) for family, one in added.items()}


@pytest.fixture
def home(added, monkeypatch):
    folder = added["smplx"].path.parent
    monkeypatch.setenv("HDX_HOME", str(folder.parent))
    return folder


def random_pose(joints: int, seed: int, spread: float = 0.4) -> BodyPose:
    rng = np.random.default_rng(seed)
    turned = rotvecs_to_matrices(rng.normal(0, spread, (1, joints, 3)))
    return BodyPose(turned, rng.normal(0, 1, (1, 3)))


def package_vertices(module, pose: BodyPose, betas: np.ndarray, family: str) -> np.ndarray:
    """What the smplx package makes of a pose, float64."""
    turned = torch.from_numpy(pose.rotations).double()
    arguments = {
        "betas": torch.from_numpy(betas)[None].double(),
        "global_orient": turned[:, :1],
        "transl": torch.from_numpy(pose.translations).double(),
    }
    if family == "smpl":
        arguments["body_pose"] = turned[:, 1:]
    else:
        arguments |= {
            "body_pose": turned[:, 1:22], "jaw_pose": turned[:, 22:23], "leye_pose": turned[:, 23:24],
            "reye_pose": turned[:, 24:25], "left_hand_pose": turned[:, 25:40], "right_hand_pose": turned[:, 40:55],
            "expression": torch.zeros(1, module.num_expression_coeffs, dtype=torch.float64),
        }  # fmt: skip
    with torch.no_grad():
        return module(**arguments).vertices[0].numpy()


@pytest.mark.parametrize("family", ["smpl", "smplx"])
def test_the_package_agrees_without_its_pose_blend_shapes(family, added, models) -> None:
    model, module = models[family], smpl_body.layer(added[family]).double()
    rng = np.random.default_rng(3)
    for seed in range(3):
        pose, betas = random_pose(len(model.parents), seed), rng.normal(0, 1, 10)
        ours = posed_vertices(model, Body(model.name, betas), pose)
        with_corrections = package_vertices(module, pose, betas, family)
        corrections = module.posedirs.clone()
        module.posedirs.zero_()
        theirs = package_vertices(module, pose, betas, family)
        module.posedirs.copy_(corrections)
        assert np.abs(ours - theirs).max() < 1e-6
        assert np.abs(ours - with_corrections).max() > 1e-3  # so the corrections are there, and are left out


@pytest.mark.parametrize("family", ["smpl", "smplx"])
def test_a_body_model_of_the_house(family, models) -> None:
    model = models[family]
    assert isinstance(model, BodyModel)
    assert model.joint_names[16] == "left_shoulder" and len(model.joint_names) == len(model.parents)
    assert (model.parents[1:] < np.arange(1, len(model.parents))).all() and model.parents[0] == -1
    np.testing.assert_allclose(model.weights.sum(1), 1, atol=1e-6)
    assert set(model.parts) == set(range(len(PARTS)))
    rest = model.rest(model.default_shape)
    left = rest.joints[model.joint_names.index("left_wrist")]
    assert left[0] > 0.4  # +X is the person's left
    foot = rest.joints[model.joint_names.index("left_foot")] - rest.joints[model.joint_names.index("left_ankle")]
    assert foot[2] > 0.05 and np.ptp(rest.vertices[:, 1]) > 1.4  # faces +Z, stands along +Y
    shorter = model.rest(np.array([0.0, 1.0]))  # fewer betas are the first ones
    longer = model.rest(np.array([0.0, 1.0, *np.zeros(8)]))
    np.testing.assert_array_equal(shorter.vertices, longer.vertices)
    with pytest.raises(InputRejected, match="11 betas"):
        model.rest(np.zeros(11))


def test_files_with_300_betas_keep_those_of_shape_alone() -> None:
    shapedirs = np.zeros((1, 3, 400), np.float32)
    assert smpl_files.usable_shapes(shapedirs, smpl_files.SMPLX) == 300
    assert smpl_files.usable_shapes(shapedirs[..., :20], smpl_files.SMPLX) == 10
    assert smpl_files.usable_shapes(shapedirs[..., :10], smpl_files.SMPL) == 10


def test_names_that_body_can_have(home, monkeypatch, tmp_path) -> None:
    assert [one.name for one in store.found()] == ["smpl-female", "smplx-neutral"]
    assert bodies.load().name == "anny"
    assert bodies.load("smplx").name == bodies.load("smplx-neutral").name == "smplx-neutral"
    assert store.wanted("smpl", "female").name == store.wanted("smpl").name == "smpl-female"
    with pytest.raises(UsageError) as error:
        store.wanted("smplx-male")
    assert error.value.hint == "hdx body add SMPLX_NEUTRAL.npz"
    for name in ("mano", "../smplx", "smplx-../../x"):
        with pytest.raises(UsageError):
            bodies.load(name)
    monkeypatch.setenv("HDX_HOME", str(tmp_path / "none"))
    assert store.found() == []
    monkeypatch.delenv("HDX_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert store.home() == tmp_path / "hdx"


def test_what_was_added_is_recorded_and_verified(files, tmp_path) -> None:
    one = store.add(files["smpl"], folder=tmp_path)
    record = json.loads((tmp_path / "smpl-female.json").read_text())
    assert record["source"] == "SMPL_FEMALE.npz" and "non-commercial" in record["licence"]
    assert str(tmp_path) not in json.dumps(record)
    with np.load(one.path, allow_pickle=False) as kept:  # nothing pickled is left
        assert all(kept[name].dtype in (np.float32, np.int32) for name in kept.files)
    with one.path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\1")
    with pytest.raises(InputRejected, match="damaged or edited"):
        smpl_body.load(one)
    (tmp_path / "smpl-female.json").write_text('{"name": "../x"}')
    assert store.found(tmp_path) == []


def test_a_gender_must_be_told_where_the_name_is_silent(files, tmp_path) -> None:
    silent = tmp_path / "model.npz"
    silent.symlink_to(files["smpl"])
    with pytest.raises(UsageError, match="neutral, female or male"):
        store.add(silent, folder=tmp_path / "bodies")
    assert store.add(silent, "male", tmp_path / "bodies").name == "smpl-male"
    assert store._gender(tmp_path / "basicModel_f_lbs_10_207_0_v1.0.0.pkl") == "female"


# pickles


class Ch:
    """Pickles as chumpy's array does."""

    def __init__(self, x):
        self.x = x


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def chumpy_pickle(content: dict) -> bytes:
    """The pickle of dictionaries with ``Ch``, under the name that chumpy's class has, without chumpy."""
    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    import sys
    import types

    fake = types.ModuleType("chumpy.ch")
    fake.Ch = Ch
    sys.modules |= {"chumpy": types.ModuleType("chumpy"), "chumpy.ch": fake}
    try:
        return pickle.dumps(content, protocol=2)
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]


def test_old_pickles_give_the_same_arrays(files, smpl_arrays, tmp_path, monkeypatch) -> None:
    """With shapes as chumpy arrays, the regressor a sparse matrix, and something that must not run beside them."""
    monkeypatch.chdir(tmp_path)
    arrays = smpl_arrays
    content = arrays | {
        "shapedirs": Ch(arrays["shapedirs"]),
        "J_regressor": sparse.csc_matrix(arrays["J_regressor"]),
        "bs_type": "lrotmin",
        "J": Bomb(),
    }
    path = tmp_path / "basicModel_f_lbs_10_207_0_v1.0.0.pkl"
    path.write_bytes(chumpy_pickle(content))
    family, found = smpl_files.read_model(path)
    _, expected = smpl_files.read_model(files["smpl"])
    assert family is smpl_files.SMPL and set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)
    assert not (tmp_path / "exploded").exists()


def test_arrays_as_python_2_pickled_them(tmp_path) -> None:
    """Bytes were text then: a hand-written pickle of numpy's _reconstruct with a BINSTRING."""
    values = np.arange(6, dtype="<f8").reshape(2, 3)
    raw = values.tobytes()
    content = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tbs."
    )  # fmt: skip
    path = tmp_path / "old.pkl"
    path.write_bytes(content)
    np.testing.assert_array_equal(smpl_files.read_pickle(path)["a"], values)


def test_a_sparse_matrix_that_points_beyond_itself(tmp_path) -> None:
    matrix = sparse.csc_matrix(np.eye(4))
    matrix.indices[2] = 10_000
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"J_regressor": matrix}))
    with pytest.raises(InputRejected):
        smpl_files.read_pickle(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.pop("weights"), "no weights"),
        (lambda a: a.update(v_template=a["v_template"][:-1]), "6889"),
        (lambda a: a.update(v_template=a["v_template"] * np.nan), "finite"),
        (lambda a: a.update(v_template=a["v_template"] * 100), "large"),
        (lambda a: a.update(posedirs=a["posedirs"][..., :5]), "posedirs"),
        (lambda a: a.update(weights=a["weights"] * 2), "weights"),
        (lambda a: a.update(J_regressor=a["J_regressor"] * 3), "J_regressor"),
        (lambda a: a.update(f=a["f"] + 6000), "beyond"),
        (lambda a: a.update(kintree_table=a["kintree_table"][:, ::-1]), "parent"),
        (lambda a: a.update(shapedirs=np.array({"a": 1}, dtype=object)), "no shapedirs"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(change, reason, smpl_arrays, tmp_path) -> None:
    arrays = dict(smpl_arrays)
    change(arrays)
    path = tmp_path / "SMPL_NEUTRAL.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputRejected, match=reason) as error:
        smpl_files.read_model(path)
    assert str(path) in error.value.message and "\n" not in error.value.message


@pytest.fixture(scope="module")
def smpl_arrays(files):
    with np.load(files["smpl"]) as archive:
        return {name: archive[name] for name in smpl_files.NEEDED}


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no", b"\x80\x02}.", b"cos\nsystem\n(S'x'\ntR."])
@pytest.mark.parametrize("suffix", [".npz", ".pkl", ".txt"])
def test_files_of_other_kinds_are_refused(content, suffix, tmp_path) -> None:
    path = tmp_path / f"SMPLX_NEUTRAL{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputRejected):
        store.add(path, folder=tmp_path / "bodies")
    assert not list(tmp_path.glob("bodies/*"))


# the fit


@pytest.fixture(scope="module")
def rigs(models):
    return {family: smpl_rig.smpl_rig(model, lifting=False) for family, model in models.items()}


@pytest.mark.parametrize("family", ["smpl", "smplx"])
def test_landmarks_are_where_anny_has_them(family, rigs, models) -> None:
    """The files are Anny in a T-pose: its own landmarks, posed by the built-in motion, are the truth."""
    from hdx_cli import motion

    body = anny.load()
    rig, rest = anny_rig(body, lifting=False), body.rest(body.default_shape)
    pose = motion.load("t-pose", rest, body.parents, body.joint_names).pose
    turned = smpl_rig.matrices_to_rotvecs(pose.rotations[0].astype(float))
    posed = pose_skeleton(turned, np.eye(3), rest.joints.astype(float), np.zeros(3), body.parents)
    truth = posed_points(rig.landmarks, body.coefficients(body.default_shape), posed)
    hip = posed.centres[body.joint_names.index("upperleg01.L")]
    ours, model = rigs[family], models[family]
    still = pose_skeleton(np.zeros((len(model.parents), 3)), np.eye(3), ours.joints, np.zeros(3), model.parents)
    found = posed_points(ours.landmarks, np.zeros(10), still)
    apart = np.linalg.norm((found - model.joints[1]) - (truth - hip), axis=1)
    # centimetres, as the two T-poses hold their feet and fingers differently
    assert apart[:29].max() < 0.008 and apart.max() < 0.02


@pytest.mark.parametrize("family", ["smpl", "smplx"])
def test_jacobians_of_the_rig(family, rigs) -> None:
    """Against central differences, with the offset of the hands and every parameter away from zero."""
    rig, rng = rigs[family], np.random.default_rng(0)
    pose, shape = rig.pose_mean + rng.normal(0, 0.2, len(rig.pose_mean)), rng.normal(0, 1, 10)
    root, shift, parents = rotvecs_to_matrices(rng.normal(size=3)), rng.normal(size=3), np.asarray(rig.model.parents)

    def points(x: np.ndarray) -> np.ndarray:
        joints = rig.joints + np.tensordot(x[-10:], rig.joints_blend, 1)
        posed = pose_skeleton(rig.rotvecs(x[:-10]), root, joints, shift, parents)
        return posed_points(rig.landmarks, x[-10:], posed)

    x = np.concatenate([pose, shape])
    joints = rig.joints + np.tensordot(shape, rig.joints_blend, 1)
    posed = pose_skeleton(rig.rotvecs(pose), root, joints, shift, parents)
    joints_jacobian = np.moveaxis(rig.joints_blend, 0, -1)
    exact = posed_points_jacobian(rig.landmarks, shape, np.eye(10), posed, joints_jacobian, rig.pose_basis, parents)
    for column in rng.choice(len(x), 25, replace=False):
        step = np.zeros(len(x))
        step[column] = 1e-5
        numeric = (points(x + step) - points(x - step)) / 2e-5
        np.testing.assert_allclose(exact[..., column], numeric, atol=1e-6)


def photo_of(model, rig, shape: np.ndarray, pose_vector: np.ndarray):
    """An observation of a body in a known pose, with landmarks at their true places."""
    from hdx_cli.camera import Cameras
    from hdx_cli.mesh import depth_buffer
    from hdx_cli.observation import Keypoints, Observation, Photo

    turned = rotvecs_to_matrices(rig.rotvecs(pose_vector))
    turned[0] = np.diag([1.0, -1.0, -1.0])
    joints = rig.joints + np.tensordot(shape, rig.joints_blend, 1)
    place = np.array([0.05, 0.0, 4.0]) - joints[0]
    pose = BodyPose(turned[None], place[None])
    posed = pose_skeleton(rig.rotvecs(pose_vector), turned[0], joints, place, np.asarray(model.parents))
    points = posed_points(rig.landmarks, shape, posed)
    height, width, focal = 320, 240, 480.0
    K = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    camera = Cameras(torch.eye(4)[None], K, width, height)
    pixels = points[:, :2] / points[:, 2:] * focal + (width / 2, height / 2)
    buffer = depth_buffer(posed_vertices(model, Body(model.name, shape), pose).astype(float), model.faces, camera)
    grey = np.full((height, width, 3), 0.5, np.float32)
    keypoints = Keypoints(
        np.concatenate([pixels[:33], np.ones((33, 1))], axis=1).astype(np.float32),
        (points[:33] - points[[23, 24]].mean(0)).astype(np.float32),
    )
    return Observation(Photo(grey, None, focal), buffer.covered.astype(np.float32), grey, keypoints), turned


@pytest.fixture(scope="module")
def photo(models, rigs):
    rig = rigs["smplx"]
    pose = rig.pose_mean.copy()
    pose[[rig.pose_names.index(name) for name in ("left_shoulder_y", "right_hip_x", "head_y")]] += (0.3, -0.3, 0.25)
    return photo_of(models["smplx"], rig, np.array([0.8, -0.5, *np.zeros(8)]), pose)


@pytest.mark.parametrize("final", [True, False])
def test_a_given_pose_is_the_last_word_or_the_start(final, photo, models) -> None:
    observation, turned = photo
    model, shape = models["smplx"], np.array([0.8, -0.5, *np.zeros(8)])
    found = fit.fit_body(model, observation, given=fit.GivenPose(turned, shape, final))
    assert found.scores["silhouette_iou"] > 0.97 and found.scores["kp_mean_pct"] < 0.5
    assert found.body.model == "smplx-neutral" and found.pose.rotations.shape == (1, 55, 3, 3)
    change = smpl_rig.matrices_to_rotvecs(np.swapaxes(turned[1:], 1, 2) @ found.pose.rotations[0, 1:].astype(float))
    assert np.abs(change).max() < (1e-5 if final else 0.15)
    if final:
        np.testing.assert_allclose(found.body.shape, shape, atol=1e-6)
    in_camera = found.camera.viewmats[0, :3, :3].double().numpy() @ found.pose.rotations[0, 0]
    np.testing.assert_allclose(in_camera, turned[0], atol=1e-5 if final else 0.1)
    assert 3.7 < np.linalg.norm(found.camera.positions()[0].numpy() - [0, 0.9, 0]) < 4.3  # it stood 4 m away


def test_a_photo_of_the_model_is_explained_by_it(photo, models, rigs) -> None:
    observation, turned = photo
    found = fit.fit_rig(rigs["smplx"], observation, fit.BodyPriors())[0]
    assert found.scores["silhouette_iou"] > 0.93 and found.scores["kp_mean_pct"] < 0.7
    vertices = posed_vertices(models["smplx"], found.body, found.pose)
    assert abs(vertices[:, 1].min()) < 1e-4  # feet on the ground


def test_poses_of_other_joint_counts_are_refused(photo, models) -> None:
    with pytest.raises(UsageError, match="24 joints"):
        fit.fit_body(models["smplx"], photo[0], given=fit.GivenPose(np.tile(np.eye(3), (24, 1, 1))))
    with pytest.raises(UsageError, match="cannot be fitted"):
        fit.rig_of(replace(models["smpl"], name="toy"))


# parameters of other programs


def test_hands_as_components_and_on_top_of_the_mean(models, tmp_path) -> None:
    from hdx_cli.bodies import smpl_params

    model, rng = models["smplx"], np.random.default_rng(0)
    body, mean = rng.normal(0, 0.3, 63), model.hand_means[0].reshape(45).astype(float)
    given = {"global_orient": np.array([[np.pi, 0, 0]]), "body_pose": body[None]}
    components, turned = rng.normal(size=6), rng.normal(0, 0.2, 45)

    def left(**hand: np.ndarray) -> np.ndarray:
        np.savez(tmp_path / "p.npz", **given, **hand)
        return smpl_params.joint_rotations(smpl_params.read_params(tmp_path / "p.npz"), model)[25:40]

    # as smplx.SMPLX has it: coefficients times components, plus the mean
    by_hand = rotvecs_to_matrices((mean + components @ model.hand_components[0][:6]).reshape(15, 3))
    np.testing.assert_allclose(left(left_hand_pose=components[None]), by_hand, atol=1e-6)
    np.testing.assert_allclose(left(), rotvecs_to_matrices(mean.reshape(15, 3)), atol=1e-6)
    np.testing.assert_allclose(left(left_hand_pose=turned), rotvecs_to_matrices(turned.reshape(15, 3)), atol=1e-6)
    whole = smpl_params.joint_rotations(smpl_params.read_params(tmp_path / "p.npz"), models["smpl"])
    np.testing.assert_allclose(whole[1:22], rotvecs_to_matrices(body.reshape(21, 3)), atol=1e-6)
    np.testing.assert_array_equal(whole[22:], np.tile(np.eye(3), (2, 1, 1)))
    np.savez(tmp_path / "p.npz", **given, betas=np.arange(15.0))
    found = smpl_params.read_params(tmp_path / "p.npz")
    np.testing.assert_array_equal(smpl_params.shape_of(found, model), np.arange(10.0))  # its file has ten
    assert smpl_params.shape_of(found, models["smpl"]) is None


def test_a_pose_of_the_family_on_anny_points_the_same_way(models) -> None:
    """Bones of Anny point where those of the model point, whatever the rest poses."""
    from hdx_cli.bodies.base import joint_transforms
    from hdx_cli.motion.skeleton import skeleton
    from hdx_cli.motion.smpl import on_rig

    model, body = models["smplx"], anny.load()
    pose = random_pose(22, 5, 0.3).rotations[0]
    named = dict(zip(model.joint_names, pose, strict=False))
    joints = body.rest(body.default_shape).joints.astype(float)
    turned = on_rig(named, skeleton(body.joint_names, body.parents, joints)).astype(float)
    all_turned = np.concatenate([pose, np.tile(np.eye(3), (33, 1, 1))])

    def places(rotations, rest, parents) -> np.ndarray:
        transforms = joint_transforms(rotations, rest, parents, np.zeros(3))
        return np.einsum("jab,jb->ja", transforms[:, :3, :3], rest) + transforms[:, :3, 3]

    theirs = dict(zip(model.joint_names, places(all_turned, model.joints.astype(float), model.parents), strict=True))
    ours = dict(zip(body.joint_names, places(turned, joints, body.parents), strict=True))
    for side, s in (("left", "L"), ("right", "R")):
        for start, end, a, b in (
            ("shoulder", "elbow", "upperarm01", "lowerarm01"), ("elbow", "wrist", "lowerarm01", "wrist"),
            ("hip", "knee", "upperleg01", "lowerleg01"), ("knee", "ankle", "lowerleg01", "foot"),
        ):  # fmt: skip
            their = theirs[f"{side}_{end}"] - theirs[f"{side}_{start}"]
            our = ours[f"{b}.{s}"] - ours[f"{a}.{s}"]
            cosine = their @ our / np.linalg.norm(their) / np.linalg.norm(our)
            # the pose is relative to a nominal T-pose, from which the file's own differs by some degrees
            assert np.degrees(np.arccos(min(cosine, 1.0))) < 12, (side, start)


# avatars


def test_motion_and_glb_of_a_rig_of_55_joints(models, tmp_path) -> None:
    """A clip of the family plays joint by joint as the file says, and the .glb has every joint."""
    from hdx_cli import motion
    from hdx_cli.avatars.avatar_file import read_avatar, write_avatar
    from hdx_cli.avatars.base import Avatar, standing_at_rest, strongest
    from hdx_cli.export.glb import Animation, Rig, SkinnedGaussians, write_glb
    from hdx_cli.gaussians import Gaussians, sh_from_rgb
    from hdx_cli.motion import retarget, smpl

    model = models["smplx"]
    rest, chosen = model.rest(model.default_shape), np.arange(0, 10475, 40)
    count = len(chosen)
    canonical = Gaussians(
        torch.from_numpy(rest.vertices[chosen].copy()), torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        torch.full((count, 3), 0.01), torch.full((count,), 0.9), sh_from_rgb(torch.full((count, 3), 0.5)),
    )  # fmt: skip
    avatar = Avatar(
        canonical, *strongest(model.weights[chosen]), Body(model.name, model.default_shape), rest, model.parents,
        model.joint_names, None, np.ones(count, np.float32), model.parts[chosen].astype(np.uint8),
    )  # fmt: skip
    write_avatar(tmp_path, replace(avatar, photo_pose=standing_at_rest(avatar)))
    back = read_avatar(tmp_path)
    assert back.body.model == "smplx-neutral" and back.joint_names == model.joint_names
    rng = np.random.default_rng(0)
    poses = rng.normal(0, 0.2, (4, 55, 3))
    poses[:, 22:25] = 0
    np.savez(tmp_path / "clip.npz", poses=poses.reshape(4, 165), trans=np.zeros((4, 3)), mocap_framerate=30.0)
    own = smpl.on_own_joints(smpl.read_npz(tmp_path / "clip.npz"), back.rest.joints, back.joint_names)
    played = retarget.retarget(own, retarget.rig(back.rest, back.parents, back.joint_names), "clip")
    np.testing.assert_allclose(played.rotations[:, 1:], rotvecs_to_matrices(poses)[:, 1:], atol=1e-5)
    clip = motion.load("walk", back.rest, back.parents, back.joint_names)
    glb = tmp_path / "avatar.glb"
    skinned = SkinnedGaussians(
        back.canonical, back.joint_indices, back.joint_weights, Rig(back.rest.joints, back.parents, back.joint_names),
        (Animation("walk", clip.pose, clip.fps, False),),
    )  # fmt: skip
    write_glb(glb, skinned)
    content = glb.read_bytes()
    described = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    assert len(described["skins"][0]["joints"]) == 55


def test_the_commands(files, tmp_path, monkeypatch) -> None:
    from typer.testing import CliRunner

    from hdx_cli.cli.bodying import body

    monkeypatch.setenv("HDX_HOME", str(tmp_path))
    runner = CliRunner()
    with contextlib.redirect_stderr(io.StringIO()):
        made_ = runner.invoke(body, ["add", str(files["smpl"]), "--json"])
        listed = runner.invoke(body, ["list", "--quiet"])
        refused = runner.invoke(body, ["add", str(tmp_path / "nothing.npz")])
    facts = json.loads(made_.stdout[: made_.stdout.rindex("}") + 1])
    assert facts["name"] == "smpl-female" and facts["commercial_use"] is False
    assert "non-commercial" in json.dumps(facts["warnings"])
    assert listed.stdout.split() == ["anny", "smpl-female"]
    assert refused.exit_code == 4
