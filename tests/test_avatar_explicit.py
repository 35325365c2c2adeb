import cv2
import numpy as np
import pytest
import torch
import trimesh
from toy import ToyBody, toy_fit, toy_photo

from hdx_cli.avatars import surface, unseen
from hdx_cli.avatars.clothing import displacement
from hdx_cli.avatars.explicit import Settings, fit_coarse, person_window, without_fringe
from hdx_cli.bodies.base import PARTS, posed_vertices
from hdx_cli.camera import orbit_of
from hdx_cli.errors import InputRejected
from hdx_cli.mesh import depth_buffer, project, vertex_normals
from hdx_cli.rasterize import rasterize

SMALL = Settings(gaussians=6000, iterations=8)


@pytest.fixture(scope="module")
def model() -> ToyBody:
    return ToyBody()


def clothe(model, fit, observation) -> np.ndarray:
    vertices = posed_vertices(model, fit.body, fit.pose)
    facing = vertex_normals(model.rest(fit.body.shape).vertices, model.faces)[:, 2]
    return displacement(vertices, model.faces, model.parts, facing, fit.camera, observation.alpha)


def test_clothes_are_as_thick_all_round_as_the_outline_says(model):
    fit = toy_fit(480)
    outward = clothe(model, fit, toy_photo(model, fit, wider_m=0.05))
    rest = model.rest(fit.body.shape).vertices
    waist = (model.parts == PARTS.index("torso")) & (np.abs(rest[:, 1] - 0.65) < 0.25)
    # the outline fixes the flanks; front and back follow through the bending energy, half a working pixel is 2 mm
    assert np.abs(np.median(outward[waist & (np.abs(rest[:, 0]) > 0.15)]) - 0.05) < 0.006
    assert 0.03 < np.median(outward[waist & (np.abs(rest[:, 2]) > 0.15)]) < 0.08


def test_a_body_that_fits_its_matte_wears_nothing(model):
    fit = toy_fit(480)
    outward = clothe(model, fit, toy_photo(model, fit))
    assert np.abs(np.median(outward)) < 0.004


def test_cells_tile_the_matte_once_and_keep_to_the_budget():
    rng = np.random.default_rng(0)
    image = np.zeros((64, 48, 3), np.float32)
    image[20:40] = rng.random((20, 48, 3))
    alpha = np.zeros((64, 48), np.float32)
    alpha[3:60, 5:41] = 1.0
    depth = np.where(alpha > 0, 3.0, np.nan)
    row, column, size = surface.adaptive_cells(image, depth, alpha, np.ones_like(alpha), budget=1000)
    count = np.zeros(alpha.shape, int)
    for r, c, s in zip(row, column, size, strict=True):
        count[r : r + s, c : c + s] += 1
    np.testing.assert_array_equal(count, alpha >= surface.MATTE_FLOOR)
    assert len(row) <= 1100 and set(size) >= {1, 4}
    assert (size[(row >= 20) & (row + size <= 40)] == 1).mean() > 0.5


def test_loose_pixels_continue_the_surface_harmonically():
    """Between two known columns of depth 2 and 2.1 the continuation is linear (Laplace's equation in one dimension)."""
    alpha = np.ones((5, 11), np.float32)
    depth = np.full(alpha.shape, np.inf)
    depth[:, 0], depth[:, -1] = 2.0, 2.1
    buffer = surface.DepthBuffer(depth, np.where(np.isfinite(depth), 0, -1), np.zeros((5, 11, 2)))
    sheet = surface.lift(buffer, alpha)
    np.testing.assert_allclose(
        sheet.depth, np.broadcast_to(np.linspace(2, 2.1, 11), (5, 11)), atol=0.0005
    )  # anchored by 1e-4
    assert (sheet.owner_x[:, 3] == 0).all() and (sheet.owner_x[:, 8] == 10).all()


def test_tangents_of_a_tilted_plane_are_exact_and_jumps_do_not_stretch(model):
    camera = toy_fit(120).camera
    depth = np.full((camera.height, camera.width), 3.0)
    depth[:, 30:] = 4.0
    right, down = surface.pixel_tangents(depth, camera)
    pixel_m = 3.0 / camera.Ks[0, 0, 0].item()
    np.testing.assert_allclose(np.linalg.norm(right[:, 29], axis=-1), pixel_m, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(down[:, 10], axis=-1), pixel_m, rtol=1e-6)


def test_the_far_side_of_a_head_is_hair_and_not_a_face():
    rng = np.random.default_rng(0)
    lenders = rng.normal(size=(4000, 3))
    lenders = 0.1 * lenders / np.linalg.norm(lenders, axis=1, keepdims=True)
    lenders = lenders[lenders[:, 2] > 0]
    face = lenders[:, 1] < 0.05
    skin, dark = np.array([0.9, 0.7, 0.6]), np.array([0.2, 0.1, 0.05])
    colours = np.where(face[:, None], skin, dark)
    points = np.array([[0.0, 0.0, -0.1], [0.05, -0.03, -0.08], [0.0, 0.09, -0.04]])
    painted = unseen.hair(points, lenders, colours, face, np.zeros(3), 0.06)
    np.testing.assert_allclose(painted, np.tile(dark, (3, 1)), atol=1e-9)


def test_beyond_a_garment_lies_its_mirror_image_at_the_same_height():
    lent = np.zeros((4, 12), bool)
    lent[:3, 4:8] = True
    row, column = np.array([1, 1, 1, 1, 3, 0]), np.array([5, 3, 9, 11, 6, 0])
    y, x = unseen.mirrored_into(lent, row, column)
    # itself; 4 + 1; 7 - 2; 7 - 4 is outside, 7 - 2 is not; straight below: the edge; 4 + 4 is outside, 4 + 2 is not
    np.testing.assert_array_equal(x, [5, 5, 5, 5, 6, 6])
    np.testing.assert_array_equal(y, [1, 1, 1, 1, 2, 0])
    lent[0] = False
    y, x = unseen.mirrored_into(lent, np.array([0, 3]), np.array([5, 6]), down=True)
    np.testing.assert_array_equal(np.stack([y, x]), [[2, 2], [5, 6]])  # a collar's edge, and a hem's


def boxes(arm_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and parts of a trunk, 0.4 m wide with its front at z = 0.1, and of an arm before its right third
    whose front is ``arm_m`` behind that."""
    trunk = trimesh.creation.box([0.4, 1.0, 0.2]).subdivide().subdivide().subdivide()
    arm = trimesh.creation.box([0.08, 0.8, 0.08], trimesh.transformations.translation_matrix([0.1, 0, 0.06 - arm_m]))
    parts = np.repeat([PARTS.index("torso"), PARTS.index("lower_arm")], [len(trunk.vertices), len(arm.vertices)])
    both = trimesh.util.concatenate([trunk, arm])
    return np.asarray(both.vertices), np.asarray(both.faces), parts


@pytest.mark.parametrize(("arm_m", "raised"), [(0.05, True), (0.15, False)])
def test_an_arm_in_the_flank_is_seen_and_the_flank_gives_way(arm_m, raised):
    vertices, faces, parts = boxes(arm_m)
    camera = toy_fit(240).camera
    middle = camera.positions()[0].double().numpy() * [1, 1, 0]
    vertices = vertices + middle
    before = depth_buffer(vertices, faces, camera)
    buffer, sunk = surface.arms_in_front(before, vertices, faces, parts, camera)
    assert sunk.any() == raised
    np.testing.assert_array_equal(buffer.depth[~sunk], before.depth[~sunk])
    if not raised:
        return
    alpha = before.covered.astype(np.float32)
    normals = vertex_normals(vertices, faces)
    unseen_of = [surface.unseen_points(vertices, normals, faces, buffer, hidden, alpha, camera, 20000, np.random.default_rng(0))[0]
                 for hidden in (sunk, np.zeros_like(sunk))]  # fmt: skip
    assert (parts[faces[buffer.face[sunk], 0]] == PARTS.index("lower_arm")).all()
    behind = buffer.depth[sunk] - before.depth[sunk]
    np.testing.assert_allclose([behind.min(), np.median(behind)], arm_m, atol=1e-6)
    # what was before the arm is right beside it, and nothing of the trunk is before it
    points, as_it_was = (found.select(parts[found.vertices[:, 0]] == PARTS.index("torso")) for found in unseen_of)
    pixels, depth = project(points.means, camera)
    column, row = pixels.astype(int).T
    inner = cv2.erode(sunk.astype(np.uint8), np.ones((3, 3), np.uint8))[row, column] > 0
    assert (depth[inner] > buffer.depth[row, column][inner] - 1e-6).all()
    beside = cv2.dilate(sunk.astype(np.uint8), np.ones((3, 3), np.uint8))[row, column] > 0
    assert (beside & ~sunk[row, column]).sum() > 100 and len(points) > len(as_it_was) + 100


def test_the_trunk_beside_an_arm_lends_no_colour_of_the_arm():
    limb = np.full((80, 80), PARTS.index("torso"))
    limb[:, :10] = PARTS.index("lower_arm")
    image = np.tile(np.array([0.9, 0.9, 0.9], np.float32), (80, 80, 1))
    image[:, :16] = [0.8, 0.5, 0.4]  # the arm is wider than the body's
    alpha, nothing = np.ones((80, 80), np.float32), np.zeros((80, 80), bool)
    doubtful = unseen.beside_an_arm(image, alpha, limb, nothing, px_per_m=200.0)
    assert doubtful[:, 10:16].all() and not doubtful[:, 18:].any() and not doubtful[:, :10].any()
    image[:, 30:36] = [0.8, 0.5, 0.4]  # the trunk has that colour too
    assert not unseen.beside_an_arm(image, alpha, limb, nothing, px_per_m=200.0).any()
    sunk = nothing.copy()
    sunk[40, 40] = True
    doubtful = unseen.beside_an_arm(image, alpha, limb, sunk, px_per_m=200.0)
    assert doubtful[40, 37:44].all() and not doubtful[40, 45:].any()


def test_see_through_copies_what_lies_in_front_and_never_another_limb():
    limb = np.full((40, 40), PARTS.index("torso"))
    limb[:, 15:25] = PARTS.index("lower_arm")
    image = np.where((limb == PARTS.index("torso"))[..., None], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    pixels = np.array([[5.5, 5.5], [20.5, 20.5], [20.5, 20.5], [-30.0, 20.0]])
    parts = np.array([PARTS.index(name) for name in ("torso", "torso", "lower_arm", "torso")])
    colours = unseen.see_through(image, limb, np.ones_like(limb, bool), pixels, parts)
    np.testing.assert_array_equal(colours, [[0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])


def test_a_tie_is_not_repeated_on_the_back():
    image = np.tile(np.array([0.1, 0.3, 0.2], np.float32), (60, 40, 1))
    image[10:50, 18:22] = [0.8, 0.1, 0.1]
    limb = np.full((60, 40), PARTS.index("torso"))
    nothing = np.zeros((60, 40), bool)
    shows = unseen.shows_at_the_outline(image, np.ones((60, 40), np.float32), limb, nothing)
    assert not shows[12:48, 18:22].any() and shows[:, :14].all()
    image[5:55, 2:6] = [0.8, 0.1, 0.1]  # a strand beside it
    strand = np.zeros((60, 40), bool)
    strand[5:55, 2:6] = True
    assert unseen.shows_at_the_outline(image, np.ones((60, 40), np.float32), limb, nothing)[20:40, 18:22].all()
    shows = unseen.shows_at_the_outline(image, np.ones((60, 40), np.float32), limb, strand)
    assert not shows[20:40, 18:22].any() and not shows[5:55, 2:6].any() and shows[:, 10:14].all()


def test_hair_and_a_neckline_are_not_on_the_back_and_a_coloured_yoke_is():
    hair, cloth, yoke, skin = [0.1, 0.05, 0.05], [0.8, 0.7, 0.3], [0.2, 0.3, 0.8], [0.8, 0.6, 0.5]
    limb = np.full((100, 40), PARTS.index("torso"))
    limb[:20], limb[20:22, 15:25] = PARTS.index("head"), PARTS.index("neck")
    face, alpha = np.zeros((100, 40), bool), np.ones((100, 40), np.float32)
    face[8:20, 12:28] = True

    def hangs(*painted: tuple[slice, slice, list[float]]) -> np.ndarray:
        image = np.tile(np.array(cloth, np.float32), (100, 40, 1))
        image[:20], image[face] = hair, skin
        for rows, columns, colour in painted:
            image[rows, columns] = colour
        return unseen.hangs_from_the_head(image, alpha, limb, face)

    strand, everything = (slice(20, 50), slice(4, 9), hair), slice(0, 40)
    found = hangs(strand, (slice(44, 52), slice(20, 24), hair))  # and a print, which does not hang
    assert found[21:50, 4:9].all() and not found[:, 12:].any() and not found[55:].any()
    assert not hangs(strand, (slice(60, 100), slice(10, 20), hair)).any()  # a striped garment
    assert not hangs((slice(20, 40), everything, yoke))[25:].any()
    found = hangs((slice(20, 34), slice(15, 25), skin), (slice(60, 64), everything, skin))  # the belly shows too
    assert found[22:34, 15:25].all() and not found[40:].any()
    assert not hangs((slice(20, 90), slice(12, 28), skin)).any()  # a garment in the colour of skin
    limb[20:, :10] = PARTS.index("upper_arm")
    assert hangs((slice(20, 34), slice(15, 25), skin)).any()
    assert not hangs((slice(20, 34), slice(4, 25), skin)).any()  # a bare shoulder


def test_coarse_avatar_reproduces_the_photo_and_closes_the_back(model):
    fit = toy_fit()
    observation = toy_photo(model, fit, wider_m=0.03)
    avatar = fit_coarse(observation, fit, model, SMALL)
    # hard stripes on a coarse grid of 8 iterations; a real photo at full settings reaches more than 30 dB
    assert avatar.scores["front_psnr_db"] > 22.0
    assert avatar.scores["silhouette_iou"] > 0.97
    assert avatar.scores["lean_deg"] == 0.0
    rendered = rasterize(avatar.gaussians(), orbit_of(fit.camera, 4))
    inner = depth_buffer(posed_vertices(model, fit.body, fit.pose), model.faces, fit.camera).covered
    back = torch.from_numpy(inner[:, ::-1].copy())
    assert (rendered.alpha[2][back] > 0.9).float().mean() > 0.98, "holes in the back"
    blue = rendered.rgb[2][round(0.6 * fit.camera.height), fit.camera.width // 2]
    assert blue[2] > blue[0], "the back of the trunk wears the front's cloth"


def test_same_seed_same_avatar_and_posing_with_the_photo_pose_is_the_default(model):
    fit = toy_fit()
    observation = toy_photo(model, fit)
    first, second = (fit_coarse(observation, fit, model, SMALL, seed=3) for _ in range(2))
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(first.canonical, name), getattr(second.canonical, name)), name
    torch.testing.assert_close(first.gaussians().means, first.gaussians(fit.pose).means)


def test_window_is_a_view_of_the_photo():
    fit = toy_fit(480)
    rgb = np.random.default_rng(0).random((480, 288, 3)).astype(np.float32)
    alpha = np.zeros((480, 288), np.float32)
    alpha[100:400, 80:200] = 1.0
    camera, window_rgb, window_alpha = person_window(fit.camera, rgb, alpha, 1000)
    inside = np.zeros_like(alpha, bool)
    inside[104:396, 84:196] = True  # away from the fringe
    x0 = round(fit.camera.Ks[0, 0, 2].item() - camera.Ks[0, 0, 2].item())
    y0 = round(fit.camera.Ks[0, 1, 2].item() - camera.Ks[0, 1, 2].item())
    cut = np.s_[y0 : y0 + camera.height, x0 : x0 + camera.width]
    np.testing.assert_array_equal(window_rgb[inside[cut]], rgb[cut][inside[cut]])
    assert window_alpha.sum() == alpha.sum()
    half, _, half_alpha = person_window(fit.camera, rgb, alpha, 159)
    assert max(half.width, half.height) == 159 and half_alpha.shape == (half.height, half.width)


def test_a_rim_of_background_is_replaced_and_thin_things_are_kept():
    alpha = np.zeros((60, 60), np.float32)
    alpha[10:50, 10:40] = 1.0
    alpha[20:22, 40:58] = 1.0
    rgb = np.where(alpha[..., None] > 0, [0.8, 0.2, 0.2], [0.0, 0.0, 1.0]).astype(np.float32)
    rgb[20:22, 46:58] = [0.0, 1.0, 0.0]
    rgb[10:50, 38:40] = [0.4, 0.1, 0.6]
    clean = without_fringe(rgb, alpha)
    np.testing.assert_allclose(clean[25:45, 38:40], np.broadcast_to([0.8, 0.2, 0.2], (20, 2, 3)))
    np.testing.assert_array_equal(clean[20:22, 50:58], rgb[20:22, 50:58])


def test_a_body_beside_the_person_is_told():
    nothing = np.full((6, 6), np.inf)
    buffer = surface.DepthBuffer(nothing, np.full((6, 6), -1), np.zeros((6, 6, 2)))
    with pytest.raises(InputRejected, match="does not lie on the person"):
        surface.lift(buffer, np.ones((6, 6)))


@pytest.mark.parametrize("step_m, ramp", [(0.3, False), (0.08, True)])
def test_what_joins_two_limbs_in_the_photo_alone_is_no_ramp_between_them(step_m: float, ramp: bool) -> None:
    depth = np.full((6, 20), np.inf)
    depth[:, :6], depth[:, 14:] = 3.0, 3.0 - step_m  # a sleeve, and a hand before it; what lies between is on neither
    face = np.where(np.isfinite(depth), 0, -1)
    sheet = surface.lift(surface.DepthBuffer(depth, face, np.zeros((6, 20, 2))), np.ones((6, 20)))
    to_either = np.minimum(np.abs(sheet.depth - 3.0), np.abs(sheet.depth - (3.0 - step_m)))
    assert (to_either.max() > 0.3 * step_m) == ramp  # a hem goes on smoothly to the next fold
    if not ramp:
        np.testing.assert_allclose(to_either, 0, atol=1e-4)


def test_chains_in_the_air_go_and_cloth_and_bags_stay() -> None:
    rng = np.random.default_rng(0)
    legs = [
        rng.uniform([x - 0.05, 0, z - 0.05], [x + 0.05, 0.8, z + 0.05], (2000, 3)) for x, z in ((-0.1, 0), (0.1, 0.5))
    ]
    bag = rng.uniform([0.4, 0.1, 0], [0.5, 0.3, 0.1], (400, 3))  # far from the body, but dense
    share = np.linspace(0.1, 0.9, 12)[:, None]
    chain = (1 - share) * [-0.05, 0.1, 0.05] + share * [0.05, 0.1, 0.45]
    found = surface.strays(np.concatenate([*legs, bag, chain]), np.concatenate(legs)[::10])
    assert found[-12:].mean() > 0.8 and not found[:-12].any()
    assert not surface.strays(chain[:5], legs[0]).any()  # too few to say
