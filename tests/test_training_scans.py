"""Scans of every layout, written here by trimesh or by hand; pictures of shapes that are known in closed form."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hdx_cli.camera import Cameras, look_at
from hdx_cli.errors import HdxError, InputRejected, UsageError
from hdx_cli.observation import Keypoints
from hdx_cli.training import scan_pairs, scans
from hdx_cli.training.scan_views import EmbreeScene
from hdx_cli.training.scans import Scan, Surface, find_scans, normalising, read_surface

RED, GREEN, BLUE, WHITE = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]
QUARTERS = np.repeat(np.repeat(np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8), 16, 0), 16, 1)
SAMPLE = Path(scans.__file__).parents[1] / "samples" / "sample.jpg"


def card(material=None, z: float = 0.0) -> trimesh.Trimesh:
    """1 m wide, 2 m tall, facing +Z, standing on y = 0; the image upright on it."""
    vertices = [[-0.5, 0, z], [0.5, 0, z], [0.5, 2, z], [-0.5, 2, z]]
    visual = trimesh.visual.TextureVisuals(np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]), material=material)
    return trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def pbr(image: np.ndarray, **more) -> trimesh.visual.material.PBRMaterial:
    return trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(image), **more)


def camera(distance: float = 4.0, size: int = 64, height: float = 1.0) -> Cameras:
    """At z = ``distance``, looking at the middle of the card; 2 m are 32 px."""
    viewmats = look_at(torch.tensor([[0.0, height, distance]]), torch.tensor([0.0, height, 0.0]))
    focal = size / 4 * distance
    return Cameras(viewmats, torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]]), size, size)


def corners_of(rgba: np.ndarray) -> list[list[int]]:
    """Colours in the middles of the card's quarters: top left, top right, bottom left, bottom right."""
    return [rgba[y, x].tolist() for y in (20, 44) for x in (27, 36)]


def mesh(path: Path) -> Scan:
    return Scan("it", "it", path, "mesh")


def write_glb(path: Path) -> None:
    card(pbr(QUARTERS)).export(path)


def write_obj(path: Path) -> None:
    path.with_suffix(".mtl").write_text("newmtl skin\nKd 1 1 1\nmap_Kd skin.png\n")
    Image.fromarray(QUARTERS[..., :3]).save(path.with_name("skin.png"))
    path.write_text(
        f"mtllib {path.stem}.mtl\nv -.5 0 0\nv .5 0 0\nv .5 2 0\nv -.5 2 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
        "usemtl skin\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
    )


def write_ply_texture(path: Path) -> None:
    Image.fromarray(QUARTERS[..., :3]).save(path.with_name("skin.png"))
    rows = ["-.5 0 0 0 0", ".5 0 0 1 0", ".5 2 0 1 1", "-.5 2 0 0 1"]
    path.write_text(
        "ply\nformat ascii 1.0\ncomment TextureFile skin.png\nelement vertex 4\nproperty float x\nproperty float y\n"
        "property float z\nproperty float s\nproperty float t\nelement face 2\nproperty list uchar int vertex_indices\n"
        "end_header\n" + "\n".join(rows) + "\n3 0 1 2\n3 0 2 3\n"
    )


def write_ply_colours(path: Path) -> None:
    """The quarters as four cards of one colour each."""
    parts = []
    for (x, y), colour in zip(
        [(-0.25, 1.5), (0.25, 1.5), (-0.25, 0.5), (0.25, 0.5)], [RED, GREEN, BLUE, WHITE], strict=True
    ):
        part = trimesh.creation.box((0.5, 1.0, 1e-4), transform=trimesh.transformations.translation_matrix([x, y, 0]))
        part.visual = trimesh.visual.ColorVisuals(part, vertex_colors=np.tile(colour, (8, 1)))
        parts.append(part)
    trimesh.util.concatenate(parts).export(path)


@pytest.mark.parametrize(
    "name, write",
    [("a.glb", write_glb), ("a.obj", write_obj), ("a.ply", write_ply_texture), ("b.ply", write_ply_colours)],
)
def test_every_format_shows_its_colours_where_they_are(tmp_path, name, write) -> None:
    write(tmp_path / name)
    surface = read_surface(mesh(tmp_path / name))
    rgba, depth = EmbreeScene(surface).render(camera())
    assert corners_of(rgba) == [RED, GREEN, BLUE, WHITE]
    assert rgba[5, 5].tolist() == [0, 0, 0, 0] and depth[5, 5] == 0
    assert depth[32, 32] == pytest.approx(4.0, abs=1e-3)
    # 1 m x 2 m at 16 px/m
    assert (rgba[..., 3] > 127).sum() == 16 * 32


def test_obj_whose_material_is_lost_takes_the_image_beside_it(tmp_path) -> None:
    write_obj(tmp_path / "a.obj")
    (tmp_path / "a.mtl").unlink()
    (scan,) = find_scans(tmp_path)
    assert corners_of(EmbreeScene(read_surface(scan)).render(camera())[0]) == [RED, GREEN, BLUE, WHITE]
    (tmp_path / "skin.png").unlink()
    with pytest.raises(InputRejected, match="texture is missing"):
        read_surface(find_scans(tmp_path)[0])


def test_cut_out_texels_show_what_is_behind_and_opaque_ones_do_not(tmp_path) -> None:
    holes = QUARTERS.copy()
    holes[:16, :16, 3] = 0  # the red quarter
    behind = card(pbr(np.full((4, 4, 4), [9, 8, 7, 255], np.uint8)), z=-0.001)
    for mode, wanted in (("MASK", [9, 8, 7, 255]), ("BLEND", [9, 8, 7, 255]), ("OPAQUE", RED)):
        trimesh.Scene([card(pbr(holes, alphaMode=mode)), behind]).export(tmp_path / "a.glb")
        rgba, depth = EmbreeScene(read_surface(mesh(tmp_path / "a.glb"))).render(camera())
        assert corners_of(rgba) == [wanted, GREEN, BLUE, WHITE], mode
    half = np.full((4, 4, 4), [255, 255, 255, 128], np.uint8)
    trimesh.Scene([card(pbr(half, alphaMode="BLEND"))]).export(tmp_path / "a.glb")
    rgba, _ = EmbreeScene(read_surface(mesh(tmp_path / "a.glb"))).render(camera())
    assert rgba[32, 32].tolist() == [255, 255, 255, 128]


def test_depth_of_a_ball_is_that_of_a_sphere() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    surface = plain(ball.vertices + [0.0, 1.0, 0.0], ball.faces)
    rgba, depth = EmbreeScene(surface).render(camera(), 1)
    y, x = np.mgrid[:64, :64] + 0.5
    ray = np.stack([(x - 32) / 64, (32 - y) / 64, -np.ones_like(x)], -1)
    a, b, c = (ray**2).sum(-1), 4 * ray[..., 2], 16 - 0.25
    root = b**2 - a * c
    near = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    inside = (depth > 0) & (root > 0.05)
    assert inside.sum() > 150
    np.testing.assert_allclose(depth[inside], near[inside], atol=2e-3)  # the ball's facets are 1 mm off the sphere
    assert (rgba[..., 3] > 0).sum() == pytest.approx((root > 0).sum(), rel=0.05)


def test_colours_vary_over_a_triangle_as_its_corners_say() -> None:
    vertices = np.array([[-1.0, 0, 0], [1, 0, 0], [-1, 2, 0]])
    surface = replace(
        plain(vertices, np.array([[0, 1, 2]])), colours=np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1.0]])
    )
    rgba, _ = EmbreeScene(surface).render(camera(), 1)
    for x, y in ((20, 45), (30, 40), (18, 30)):
        place = np.array([(x + 0.5 - 32) / 16, 1 - (y + 0.5 - 32) / 16])
        second, third = (place[0] + 1) / 2, place[1] / 2
        wanted = np.array([1 - second - third, second, third]) * 255
        assert np.abs(rgba[y, x, :3] - wanted).max() <= 1


def test_a_fine_texture_far_away_is_its_mean_and_not_noise() -> None:
    checks = np.zeros((256, 256, 4), np.uint8)
    checks[..., 3] = 255
    checks[::2, ::2, :3] = checks[1::2, 1::2, :3] = 255
    vertices = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.5, 2, 0], [-0.5, 2, 0]])
    uv = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1.0]]])
    surface = Surface(vertices, np.array([[0, 1, 2], [0, 2, 3]]), uv, np.zeros(2, int), (checks,), np.ones((4, 4)))
    rgba, _ = EmbreeScene(surface).render(camera())
    inside = rgba[20:44, 26:38, :3].astype(float)
    assert abs(inside.mean() - 127.5) < 3 and inside.std() < 12


def plain(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    count, white = len(faces), np.ones((len(vertices), 4))
    return Surface(
        np.asarray(vertices, float), np.asarray(faces), np.zeros((count, 3, 2)), np.full(count, -1), (), white
    )


def test_layouts_are_told_apart_with_what_belongs_to_them(tmp_path) -> None:
    def make(name: str, content: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    for number in ("0000", "0001"):
        make(f"thuman/model/{number}/{number}.obj")
        make(f"thuman/model/{number}/material0.jpeg")
        make(f"thuman/smplx/{number}/smplx_param.pkl")
        make(f"thuman/smplx/{number}/mesh_smplx.obj")
    make("custom/0007_00006_05/mesh-f00011.obj")
    make("custom/0007_00006_05/mesh-f00011_smplx.json")
    make("custom/0007_00007_02/mesh-f00101.obj")
    make("custom/0007_00007_02/smplx.json")
    make("anny/012/scan.glb")
    make("anny/012/params.npz")
    make("other/a b/né.ply")
    make("other/.hidden.ply")
    found = {scan.name: scan for scan in find_scans(tmp_path)}
    assert {name: scan.layout for name, scan in found.items()} == {
        "thuman-model-0000": "thuman", "thuman-model-0001": "thuman", "anny-012": "anny", "other-a_b-n_": "mesh",
        "custom-0007_00006_05-mesh-f00011": "customhumans", "custom-0007_00007_02-mesh-f00101": "customhumans",
    }  # fmt: skip
    thuman = found["thuman-model-0001"]
    assert thuman.registration == tmp_path / "thuman/smplx/0001/smplx_param.pkl"
    assert thuman.texture.name == "material0.jpeg"
    custom = [scan for scan in found.values() if scan.layout == "customhumans"]
    assert {scan.person for scan in custom} == {"custom-0007"} and all(scan.registration for scan in custom)
    assert found["anny-012"].registration.name == "params.npz" and found["other-a_b-n_"].registration is None
    with pytest.raises(UsageError, match="no .glb"):
        find_scans(tmp_path / "thuman/smplx/0000")


def smpl(arms_down_rad: float) -> dict[str, np.ndarray]:
    """A T-pose with the arms turned down about the axis across the view."""
    body = np.zeros((21, 3))
    body[15], body[16] = [0, 0, -arms_down_rad], [0, 0, arms_down_rad]  # the shoulders
    return {"global_orient": np.zeros(3), "body_pose": body.reshape(-1), "transl": np.zeros(3)}


@pytest.mark.parametrize("kind", ["json", "pkl", "npz"])
def test_wrists_of_a_registered_body(tmp_path, kind) -> None:
    """By hand: the nominal shoulder is 0.17 m beside the pelvis and the wrist 0.51 m farther along the arm."""
    for down in (0.0, 1.2):
        path = tmp_path / f"smplx_param.{kind}"
        values = smpl(down)
        if kind == "json":
            path.write_text(json.dumps({name: value.tolist() for name, value in values.items()}))
        elif kind == "pkl":
            path.write_bytes(pickle.dumps(values))
        else:
            np.savez(path, **values)
        scan = Scan("a", "a", tmp_path / "a.obj", "thuman", path)
        wanted = (0.17 + 0.51 * math.cos(down)) / scan_pairs.SMPL_HEIGHT
        assert scan_pairs.registered_wrist(scan, np.eye(4)) == pytest.approx(wanted, abs=1e-6)
    path.write_bytes(b"garbage")
    with pytest.raises(InputRejected):
        scan_pairs.registered_wrist(scan, np.eye(4))


def test_wrists_of_a_registered_anny(tmp_path) -> None:
    from hdx_cli.bodies import anny

    model = anny.load()
    joints = model.rest(model.default_shape).joints
    poses = np.tile(np.eye(4), (len(joints), 1, 1))
    poses[:, :3, 3] = np.stack([joints[:, 0], -joints[:, 2], joints[:, 1]], 1)  # the file has z up and faces -y
    np.savez(tmp_path / "params.npz", bone_transforms=np.tile(np.eye(4), (len(joints), 1, 1)), bone_poses=poses,
             body_vertices=np.zeros((3, 3)))  # fmt: skip
    scan = Scan("a", "a", tmp_path / "scan.glb", "anny", tmp_path / "params.npz")
    wrist = joints[model.joint_names.index("wrist.L")][0] - joints[0][0]
    twice = np.diag([2.0, 2, 2, 1])
    assert scan_pairs.registered_wrist(scan, twice) == pytest.approx(2 * wrist / scans.HEIGHT_M, rel=1e-3)
    np.savez(tmp_path / "params.npz", nothing=np.zeros(3))
    with pytest.raises(InputRejected, match="registered body"):
        scan_pairs.registered_wrist(scan, np.eye(4))


def test_width_from_the_widest_side() -> None:
    body = trimesh.creation.box((0.4, 1.8, 0.2)).vertices
    assert scan_pairs.widest(body) == pytest.approx(math.hypot(0.4, 0.2) / 1.8, rel=0.03)  # its diagonal, nearly
    arms = np.concatenate([body, [[0.8, 0.5, 0], [-0.8, 0.5, 0]]])
    turned = arms @ trimesh.transformations.rotation_matrix(1.1, [0, 1, 0])[:3, :3].T
    assert scan_pairs.widest(arms) > scan_pairs.WIDEST > scan_pairs.widest(body)
    assert scan_pairs.widest(turned) == pytest.approx(1.6 / 1.8, rel=0.02)


def test_wrists_in_a_photo() -> None:
    pixels = np.zeros((33, 3), np.float32)
    pixels[list(scan_pairs.HIPS), 0] = 45, 55
    pixels[15], pixels[16] = [90, 50, 0.9], [5, 50, 0.1]  # the second one is not seen
    alpha = np.zeros((120, 100), np.uint8)
    alpha[10:110, 50] = 255
    keypoints = Keypoints(pixels, np.zeros((33, 3), np.float32))
    assert scan_pairs.seen_wrist(keypoints, alpha) == pytest.approx(0.4)


@pytest.mark.parametrize("up", ["y", "z", "-y"])
def test_scans_are_stood_up_and_scaled(up) -> None:
    rng = np.random.default_rng(0)
    body = rng.uniform(-1, 1, (4000, 3)) * [0.3, 0.9, 0.2] + [5.0, 3.0, 1.0]
    axes = {"y": [0, 1, 2], "z": [0, 2, 1], "-y": [0, 1, 2]}[up]
    signs = {"y": [1, 1, 1], "z": [1, -1, 1], "-y": [1, -1, -1]}[up]  # z up: (x, -z, y)
    given = 37.0 * body[:, axes] * signs
    transform, size = normalising(given, up)
    stood = given @ transform[:3, :3].T + transform[:3, 3]
    np.testing.assert_allclose(stood, (body - [5, 2.1, 1]), atol=5e-3)
    np.testing.assert_allclose(size, [0.6, 1.8, 0.4], atol=5e-3)
    if up != "-y":
        assert np.allclose(normalising(given, "auto")[0], transform)


def test_the_photo_is_taken_from_where_the_face_is(tmp_path) -> None:
    """A card with a photo on it that faces an azimuth of 40 degrees: view 2 of the orbit."""
    picture = np.array(Image.open(SAMPLE).convert("RGBA"))[70:900, 165:555]
    back = card(pbr(np.full((4, 4, 4), [90, 90, 90, 255], np.uint8)), z=-0.02)
    trimesh.Scene([card(pbr(picture)), back]).export(tmp_path / "a.glb")
    surface = read_surface(mesh(tmp_path / "a.glb"))
    turn = trimesh.transformations.rotation_matrix(math.radians(40), [0, 1, 0])
    surface = surface.moved(turn)
    surface = surface.moved(normalising(surface.vertices, "y")[0])
    chosen = scan_pairs.reference_camera(EmbreeScene(surface))
    x, y, z = chosen.positions()[0].tolist()
    assert math.degrees(math.atan2(x, z)) == pytest.approx(40, abs=1e-3) and y == pytest.approx(0.9)
    (top,), (bottom,) = (chosen.project(torch.tensor([[0.0, h, 0.0]]))[0][0, :, 1].tolist() for h in (1.8, 0.0))
    assert (bottom - top) / chosen.height == pytest.approx(scan_pairs.FILL, rel=0.01)


def test_the_pelvis_is_in_the_middle_of_the_body() -> None:
    trunk = trimesh.creation.cylinder(0.2, 1.8, sections=64)
    vertices = trunk.vertices[:, [0, 2, 1]] + [0.1, 0.9, 0.3]
    camera = scan_pairs.around(torch.tensor([0.4]), *scan_pairs.PHOTO)
    hip = camera.project(torch.tensor([[0.1, 0.95, 0.3]]))[0][0, 0].numpy()
    pixels = np.zeros((33, 3), np.float32)
    pixels[list(scan_pairs.HIPS), :2] = hip + [[-20, 0], [20, 0]]
    keypoints = Keypoints(pixels, np.zeros((33, 3), np.float32))
    scene = EmbreeScene(plain(vertices, trunk.faces))
    np.testing.assert_allclose(scan_pairs.pelvis_of(scene, camera, keypoints), [0.1, 0.95, 0.3], atol=2e-3)
    pixels[list(scan_pairs.HIPS), 0] = 3
    with pytest.raises(InputRejected, match="hips"):
        scan_pairs.pelvis_of(scene, camera, keypoints)


def bad_files(folder: Path) -> list[Path]:
    def made(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    head = b"ply\nformat ascii 1.0\nelement vertex %b\nproperty float x\nproperty float y\nproperty float z\n"
    head += b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    write_glb(folder / "whole.glb")
    whole = (folder / "whole.glb").read_bytes()
    return [
        made("empty.glb", b""), made("noise.glb", b"\x93" * 500), made("cut.glb", whole[: len(whole) // 2]),
        made("points.obj", b"v 0 0 0\nv 1 0 0\n"), made("nan.ply", head % b"3" + b"nan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
        made("far.ply", head % b"3" + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n"),
        made("huge.ply", head % b"999999999999" + b"0 0 0\n3 0 1 2\n"),
        made("plain.ply", head % b"3" + b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"),
    ]  # fmt: skip


def test_what_is_no_scan_is_rejected_in_one_line(tmp_path) -> None:
    for path in bad_files(tmp_path):
        with pytest.raises(InputRejected) as told:
            read_surface(mesh(path))
        assert str(path) in told.value.message and "\n" not in told.value.message
    with pytest.raises(InputRejected, match="height"):
        normalising(np.zeros((5, 3)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_makes_no_traceback(tmp_path, at, value) -> None:
    write_glb(tmp_path / "whole.glb")
    content = bytearray((tmp_path / "whole.glb").read_bytes())
    content[at % len(content)] = value
    (tmp_path / "a.glb").write_bytes(content)
    try:
        surface = read_surface(mesh(tmp_path / "a.glb"))
        assert np.isfinite(surface.vertices).all()
    except HdxError:
        pass


def test_rejected_scans_are_listed_and_not_tried_again(tmp_path) -> None:
    folder, out = tmp_path / "scans", tmp_path / "pairs"
    folder.mkdir()
    (folder / "bad.glb").write_bytes(b"nothing")
    trimesh.creation.box((1.7, 1.8, 0.2)).export(folder / "wide.ply")
    box = trimesh.creation.box((1.7, 1.8, 0.2))
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.full((8, 4), 200, np.uint8))
    box.export(folder / "wide.ply")
    spoken: list[str] = []
    made = scan_pairs.make_pairs(folder, out, jobs=2, timeout_s=600, say=spoken.append)
    assert made.made == 0 and [entry["scan"] for entry in made.rejected] == ["bad", "wide"]
    assert [entry["code"] for entry in made.rejected] == ["E_SCAN", "E_WIDE_ARMS"] and len(spoken) == 2
    assert json.loads((out / scan_pairs.REJECTED).read_text())["rejected"] == made.rejected
    again = scan_pairs.make_pairs(folder, out, say=spoken.append)
    assert again == made and len(spoken) == 2
    (out / "bad_estimated.npz").write_bytes(b"")
    (out / "bad_noisy.npz").write_bytes(b"")
    (out / "wide_estimated.npz").write_bytes(b"")
    assert scan_pairs.make_pairs(folder, out, say=spoken.append).kept == 3


def test_a_process_that_takes_too_long_costs_its_scan_alone(tmp_path) -> None:
    (tmp_path / "a.glb").write_bytes(b"nothing")
    made = scan_pairs.make_pairs(tmp_path, tmp_path / "out", timeout_s=0.05)
    assert [(entry["code"], entry["variant"]) for entry in made.rejected] == [("E_TIMEOUT", None)]
