"""The CPU rasteriser against a dense float64 reference, and what must hold for any input."""

from __future__ import annotations

import concurrent.futures
import inspect
import math

import oracles
import pytest
import torch

from hdx_cli.camera import Cameras, turntable
from hdx_cli.gaussians import SH_C0, Gaussians, concatenate, sh_from_rgb
from hdx_cli.rasterize import morton_order, rasterize, visibility

NAMES = ("means", "quats", "scales", "opacities", "sh")


def cloud(n: int, bases: int = 1, seed: int = 0) -> Gaussians:
    """A ball of Gaussians of mixed sizes, shapes and opacities, about a metre wide; ``bases`` changes only ``sh``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    means, quats, scales = 0.35 * normal(n, 3), normal(n, 4), 0.03 * torch.exp(0.6 * normal(n, 3))
    opacities, rgb = torch.sigmoid(1 + 1.8 * normal(n)), torch.rand(n, 3, generator=generator)
    return Gaussians(means, quats, scales, opacities, torch.cat([sh_from_rgb(rgb), 0.15 * normal(n, bases - 1, 3)], 1))


def views(width: int = 48, height: int = 72, azimuths=(0.3, 2.0, 4.0), **options) -> Cameras:
    return turntable(torch.zeros(3), 1.6, width, height, torch.tensor(azimuths), **options)


def leaves(gaussians: Gaussians, dtype=torch.float32) -> Gaussians:
    return Gaussians(*(getattr(gaussians, k).to(dtype).clone().requires_grad_() for k in NAMES))


def gradients(gaussians: Gaussians, cameras: Cameras, **options) -> list[torch.Tensor]:
    """Gradients of a fixed random function of all three images."""
    copy = leaves(gaussians)
    rendered = rasterize(copy, cameras, **options)
    generator = torch.Generator().manual_seed(5)
    images = (rendered.rgb, rendered.alpha, rendered.depth)
    sum((torch.randn(i.shape, generator=generator) * i).sum() for i in images).backward()
    return [getattr(copy, k).grad for k in NAMES]


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize("bases", [1, 4, 9, 16])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(
    "cameras",
    [
        views(elevation_rad=0.2),
        # neither side a multiple of 8; a wide lens near by, so that some lie outside the image and some behind
        views(45, 71, (1.0, 5.0), fov_y_rad=1.9, elevation_rad=-0.3, fill=1.6),
    ],
    ids=["around", "near"],
)
def test_images_and_gradients_equal_a_dense_reference(bases, antialiased, cameras):
    scene = cloud(200, bases)
    ours, theirs = leaves(scene), leaves(scene, torch.float64)
    background = torch.rand(len(cameras), 3, generator=torch.Generator().manual_seed(1))
    our_background = background.clone().requires_grad_()
    their_background = background.double().requires_grad_()
    rendered = rasterize(ours, cameras, background=our_background, antialiased=antialiased)
    images = (rendered.rgb, rendered.alpha, rendered.depth)
    references = oracles.rasterize(theirs, cameras, their_background, antialiased)
    # Rounding of float32: exponents of up to 8 bits are off by 1e-6, and depth is a quotient of two such sums.
    for image, reference, tolerance in zip(images, references, (1e-5, 1e-5, 2e-4), strict=True):
        assert (image - reference).abs().max() < tolerance
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(i.shape, generator=generator) for i in references]
    weights[2] = weights[2] * (references[1] > 0.5)  # depths of what is hardly there have gradients like 1 / alpha
    sum((w * i).sum() for w, i in zip(weights, images, strict=True)).backward()
    sum((w * i).sum() for w, i in zip(weights, references, strict=True)).backward()
    for name in NAMES:
        # float32 has 6e-8; the sums cancel some of it. A wrong term shows at 1e-3 and above.
        assert relative(getattr(ours, name).grad, getattr(theirs, name).grad) < 5e-6, name
    assert relative(our_background.grad, their_background.grad) < 5e-6


@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_where_alpha_is_cut_off_and_pixels_are_finished(seed):
    scene, cameras = cloud(150, seed=seed), views(40, 40, (1.0,))
    scene.scales.mul_(4)
    scene.opacities[::2] = 1.0
    ours, theirs = leaves(scene), leaves(scene, torch.float64)
    rendered = rasterize(ours, cameras)
    references = oracles.rasterize(theirs, cameras, torch.zeros(1, 3).double())
    assert (rendered.alpha > 0.9985).float().mean() > 0.05  # many have little room left
    (rendered.rgb.square().sum() + rendered.alpha.sum()).backward()
    (references[0].square().sum() + references[1].sum()).backward()
    for name in NAMES:
        # the transmittance comes back by divisions from 1e-4, each of which rounds
        assert relative(getattr(ours, name).grad, getattr(theirs, name).grad) < 3e-5, name


def test_the_reference_projects_as_gsplat_does():
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    scene, cameras = leaves(cloud(50, 16), torch.float64), views()
    viewmat, K = cameras.viewmats[0].double(), cameras.Ks[0].double()
    centres, conics, depths, opacities = oracles.project(
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        viewmat,
        K,
        cameras.width,
        cameras.height,
        antialiased=True,
    )
    covariances, _ = gsplat._quat_scale_to_covar_preci(scene.quats, scene.scales, True, False)
    _, means2d, z, packed, factors = gsplat._fully_fused_projection(
        scene.means, covariances, viewmat[None], K[None], cameras.width, cameras.height, calc_compensations=True
    )
    ours = (centres, torch.stack([conics[:, 0, 0], conics[:, 0, 1], conics[:, 1, 1]], -1), depths, opacities)
    for value, reference in zip(ours, (means2d[0], packed[0], z[0], scene.opacities * factors[0]), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-9)  # the same formulas in float64
    directions = torch.nn.functional.normalize(scene.means, dim=-1)
    colors = (oracles.real_harmonics(directions, 3)[..., None] * scene.sh).sum(1)
    # gsplat's constants carry 16 digits
    torch.testing.assert_close(colors, gsplat._spherical_harmonics(3, scene.means, scene.sh), rtol=1e-9, atol=1e-9)


def one_gaussian(opacity: float, z: float = 2.0) -> Gaussians:
    """Round, on the optical axis of ``front``, its image 2 px wide before the low-pass."""
    color = sh_from_rgb(torch.tensor([[0.9, 0.5, 0.1]]))
    quats = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    return Gaussians(torch.tensor([[0.0, 0.0, z]]), quats, torch.full((1, 3), 0.02 * z), torch.tensor([opacity]), color)


def front(width: int = 9, height: int = 9, focal_px: float = 100.0) -> Cameras:
    K = torch.tensor([[[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], K, width, height)


def test_one_gaussian_by_hand():
    rendered = rasterize(one_gaussian(0.5), front(), background=torch.tensor([1.0, 0.0, 0.0]))
    # Its variance is (100 * 0.04 / 2)^2 + 0.3 px^2; the middle pixel's centre is its own, the next one 1 px away.
    for column, distance in ((4, 0.0), (5, 1.0), (7, 3.0)):
        alpha = 0.5 * math.exp(-0.5 * distance**2 / 4.3)
        assert rendered.alpha[0, 4, column].item() == pytest.approx(alpha, rel=1e-6)
        expected = [alpha * 0.9 + (1 - alpha), alpha * 0.5, alpha * 0.1]
        assert rendered.rgb[0, 4, column].tolist() == pytest.approx(expected, rel=1e-6)
        assert rendered.depth[0, 4, column].item() == pytest.approx(2.0, rel=1e-6)


def test_alpha_is_cut_at_255th_and_at_999_thousandths():
    assert rasterize(one_gaussian(1.0), front()).alpha[0, 4, 4].item() == pytest.approx(0.999, rel=1e-6)
    faint = rasterize(one_gaussian(0.9 / 255), front())
    assert faint.alpha.max() == 0 and faint.depth.max() == 0
    # 0.5 exp(-d^2 / 8.6) falls below 1/255 between 6 and 7 px
    wide = rasterize(one_gaussian(0.5), front(17, 17)).alpha[0, 8]
    assert wide[8 + 6] > 1 / 255 and wide[8 + 7] == 0


def test_a_pixel_stops_before_its_transmittance_reaches_a_ten_thousandth():
    stack = concatenate([one_gaussian(0.9, z) for z in (1.0, 2.0, 3.0, 4.0, 5.0)])
    # 0.1^3 = 1e-3 remains after three; a fourth would leave 1e-4, which is not more than 1e-4.
    assert rasterize(stack, front()).alpha[0, 4, 4].item() == pytest.approx(0.999, rel=1e-6)
    assert visibility(stack, front())[0, 4].item() < visibility(stack, front())[0, 3].item()


def test_more_gaussians_in_a_tile_than_a_batch_and_their_order_in_memory_does_not_matter():
    scene, camera = cloud(3000, seed=3), views(40, 40, (0.0,))
    shuffled = scene.select(torch.randperm(3000, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(rasterize(scene, camera).rgb, rasterize(shuffled, camera).rgb)
    reference = oracles.rasterize(leaves(scene, torch.float64), camera, torch.zeros(1, 3).double())
    # 3000 alphas near their cut-offs: one pixel-pair may fall on the other side of 1/255
    assert (rasterize(scene, camera).rgb - reference[0]).abs().max() < 1 / 255


@pytest.mark.parametrize("antialiased", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(antialiased):
    scene, camera = cloud(3001, 4), views(200, 136, (0.5,))  # enough for threads to be used
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            r = rasterize(scene, camera, antialiased=antialiased)
            results.append([r.rgb, r.alpha, r.depth, *gradients(scene, camera, antialiased=antialiased)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_renders_at_the_same_time_do_not_disturb_one_another():
    scenes, camera = [cloud(300, 4, seed) for seed in range(4)], views()
    alone = [gradients(s, camera) for s in scenes]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda s: gradients(s, camera), scenes * 3))
    for k, result in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(alone[k % 4], result, strict=True))


BAD = {
    "means": [math.nan, math.inf, -math.inf, 3e38],
    "quats": [math.nan, math.inf, 0.0, 3e38],
    "scales": [math.nan, math.inf, 3e38, 1e15],
    "opacities": [math.nan, -math.inf, -1.0, 0.0],
    "sh": [math.nan, math.inf, -math.inf, math.nan],
}


@pytest.mark.parametrize("bases", [1, 16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("antialiased", [False, True])
def test_bad_gaussians_vanish_and_leave_the_others_alone(name, bases, antialiased):
    good, camera = cloud(60, bases), views(azimuths=(0.3, 2.0))
    bad = cloud(len(BAD[name]), bases, seed=9)
    for row, value in enumerate(BAD[name]):
        getattr(bad, name)[row] = value
    mixed = concatenate([good.select(torch.arange(21)), bad, good.select(torch.arange(21, 60))])
    is_bad = torch.zeros(len(mixed), dtype=torch.bool)
    is_bad[21 : 21 + len(bad)] = True
    options = dict(antialiased=antialiased, background=torch.tensor([0.2, 0.5, 0.7]))
    alone, together = rasterize(good, camera, **options), rasterize(mixed, camera, **options)
    for image in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(alone, image), getattr(together, image))
    for expected, gradient in zip(gradients(good, camera, **options), gradients(mixed, camera, **options), strict=True):
        assert gradient[is_bad].abs().sum() == 0
        assert torch.equal(gradient[~is_bad], expected)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"scales": 0.0},
        {"scales": 1e-30},
        {"scales": -0.02},
        {"scales": 50.0},
        {"scales": 1e6},
        {"scales": (1e-6, 1e-6, 10.0)},
        {"quats": 1e-10},
        {"quats": 1e15},
        {"opacities": 3.0},
        {"means": 1e9},
        {"sh": -1e5},
        {"sh": 1e5},
    ],
    ids=str,
)
def test_extreme_values_give_finite_images_and_gradients(change, antialiased):
    scene, cameras = cloud(40, 4), views()
    for name, value in change.items():
        getattr(scene, name)[::3] = torch.tensor(value)
    rendered = rasterize(scene, cameras, antialiased=antialiased)
    assert all(torch.isfinite(image).all() for image in vars(rendered).values())
    assert all(torch.isfinite(g).all() for g in gradients(scene, cameras, antialiased=antialiased))


def test_gaussians_behind_and_at_the_camera_are_left_out():
    scene = concatenate([one_gaussian(0.5, z) for z in (-2.0, 0.0, 0.005)])
    rendered = rasterize(scene, front())
    assert rendered.alpha.max() == 0
    assert all(g.abs().sum() == 0 for g in gradients(scene, front()))
    assert rasterize(one_gaussian(0.5, 2.0), front(), near_m=2.1).alpha.max() == 0


@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 17])
def test_any_number_of_gaussians(n):
    scene, cameras = cloud(n, 4), views()
    reference = oracles.rasterize(leaves(scene, torch.float64), cameras, torch.ones(3, 3).double())
    rendered = rasterize(scene, cameras, background=torch.ones(3))
    assert (rendered.rgb - reference[0]).abs().max() < 1e-5
    assert [g.shape for g in gradients(scene, cameras)] == [getattr(scene, k).shape for k in NAMES]


@pytest.mark.parametrize("width, height", [(1, 1), (1, 300), (300, 1), (7, 33), (65, 32)])
def test_any_image_size(width, height):
    scene, camera = cloud(30), views(width, height, (0.0,))
    reference = oracles.rasterize(leaves(scene, torch.float64), camera, torch.zeros(1, 3).double())
    assert (rasterize(scene, camera).rgb - reference[0]).abs().max() < 1e-5
    assert all(torch.isfinite(g).all() for g in gradients(scene, camera))


def test_no_cameras_make_no_images():
    assert rasterize(cloud(5), views()[0:0]).rgb.shape == (0, 72, 48, 3)


def test_a_render_without_gradients_is_the_same_and_keeps_nothing():
    scene, cameras = leaves(cloud(100, 4)), views()
    with torch.no_grad():
        plain = rasterize(scene, cameras)
    tracked = rasterize(scene, cameras)
    assert plain.rgb.grad_fn is None and tracked.rgb.grad_fn is not None
    assert all(torch.equal(getattr(plain, k), getattr(tracked, k)) for k in ("rgb", "alpha", "depth"))


def test_only_what_asks_for_gradients_gets_them_and_unused_images_cost_none():
    scene = cloud(50, 4).detach()
    scene.sh.requires_grad_()
    (one,) = torch.autograd.grad(rasterize(scene, views()).rgb.sum(), [scene.sh])
    assert one.abs().sum() > 0
    everything = leaves(scene.detach())
    rasterize(everything, views()).rgb.sum().backward()
    assert torch.equal(everything.sh.grad, one)
    assert everything.means.grad.abs().sum() > 0


def test_gradients_of_several_cameras_add_up():
    scene, cameras = cloud(80, 4), views()
    together, apart = leaves(scene), leaves(scene)
    rasterize(together, cameras).rgb.square().sum().backward()
    for c in range(3):
        rasterize(apart, cameras[c]).rgb.square().sum().backward()
    for name in NAMES:
        # only the order of three float32 additions differs
        torch.testing.assert_close(getattr(together, name).grad, getattr(apart, name).grad, rtol=1e-5, atol=1e-4)


def test_turning_the_world_with_its_camera_changes_nothing():
    scene, cameras = cloud(100), views()
    quaternion = torch.nn.functional.normalize(torch.tensor([[0.3, -0.5, 0.7, 0.2]]))
    rotation = oracles.rotation_matrices(quaternion)[0]
    w, v = quaternion[0, 0], quaternion[0, 1:].expand(100, 3)
    qw, qv = scene.quats[:, :1], scene.quats[:, 1:]
    turned_quats = torch.cat([w * qw - (v * qv).sum(1, keepdim=True), w * qv + qw * v + torch.linalg.cross(v, qv)], 1)
    turned = Gaussians(scene.means @ rotation.T, turned_quats, scene.scales, scene.opacities, scene.sh)
    world = torch.eye(4)
    world[:3, :3] = rotation
    moved = Cameras(cameras.viewmats @ world.T, cameras.Ks, cameras.width, cameras.height)
    # the turn itself rounds: 1e-7 of a metre at 4 m and a slope of one per pixel
    assert (rasterize(scene, cameras).rgb - rasterize(turned, moved).rgb).abs().max() < 1e-4


def test_visibility_is_each_gaussians_share_of_alpha():
    scene, cameras = cloud(150, 9), views()
    weights = visibility(scene, cameras)
    alpha = rasterize(scene, cameras).alpha
    assert weights.shape == (3, 150) and weights.min() >= 0
    # alpha is the sum of all weights; 3456 pixels of float32
    torch.testing.assert_close(weights.sum(1), alpha.sum((1, 2)), rtol=1e-5, atol=0)
    white = Gaussians(*(getattr(scene, k) for k in NAMES[:4]), torch.zeros(150, 1, 3))
    white.sh[17] = 1 / SH_C0
    grey = Gaussians(*(getattr(scene, k) for k in NAMES[:4]), torch.zeros(150, 1, 3))
    brighter = rasterize(white, cameras).rgb[..., 0].sum((1, 2)) - rasterize(grey, cameras).rgb[..., 0].sum((1, 2))
    torch.testing.assert_close(weights[:, 17], brighter, rtol=1e-3, atol=2e-3)  # a difference of two large sums


def test_morton_order_interleaves_the_bits_of_the_cells():
    # a 2 x 2 x 2 cube: the code of a corner is x + 2 y + 4 z
    corners = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
    assert corners[morton_order(corners)].tolist() == [[k & 1, k >> 1 & 1, k >> 2] for k in range(8)]


def test_morton_order_is_a_permutation_for_any_points():
    points = torch.randn(500, 3)
    points[::50] = math.nan
    points[1::50] = math.inf
    assert torch.equal(morton_order(points).sort().values, torch.arange(500))
    assert len(morton_order(torch.zeros(0, 3))) == 0
    assert morton_order(torch.zeros(4, 3)).tolist() == [0, 1, 2, 3]


def test_supersampling_takes_means_of_a_finer_image():
    gaussians, cameras, background = cloud(60), views(16, 24), torch.tensor([0.2, 0.5, 0.9])
    made = rasterize(gaussians, cameras, background=background, supersample=3)
    fine = rasterize(gaussians, views(48, 72), background=background)

    def means(values: torch.Tensor) -> torch.Tensor:
        return values.view(3, 24, 3, 16, 3, -1).mean((2, 4))

    torch.testing.assert_close(made.rgb, means(fine.rgb))
    torch.testing.assert_close(made.alpha, means(fine.alpha)[..., 0])
    depth = means(fine.depth * fine.alpha)[..., 0] / made.alpha.clamp(min=1e-12)
    torch.testing.assert_close(made.depth, torch.where(made.alpha > 0, depth, 0.0), rtol=1e-4, atol=1e-6)


def test_supersampling_keeps_the_area_of_what_is_seen_from_afar():
    # a disc of 1 m, covered by Gaussians of 5 mm, 20 px wide in the image
    grid = torch.linspace(-0.5, 0.5, 101)
    x, y = (side.flatten() for side in torch.meshgrid(grid, grid, indexing="ij"))
    inside = x**2 + y**2 <= 0.25
    means = torch.stack([x, y, torch.full_like(x, 2.0)], 1)[inside]
    n = len(means)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)
    sheet = Gaussians(means, quats, torch.full((n, 3), 0.005), torch.full((n,), 0.95), torch.zeros(n, 1, 3))
    camera = front(32, 32, 40.0)
    area_px = math.pi * 10**2
    areas = [float(rasterize(sheet, camera, supersample=samples).alpha.sum()) / area_px for samples in (1, 4)]
    assert areas[0] > 1.2 and areas[1] == pytest.approx(1, abs=0.05)


def test_wrong_number_of_harmonics_is_refused():
    with pytest.raises(ValueError, match="not 5"):
        rasterize(cloud(3, 5), views())


def test_the_cuda_adapter_calls_gsplat_by_its_real_signature(monkeypatch):
    gsplat = pytest.importorskip("gsplat")
    from hdx_cli.rasterize.cuda import rasterize_cuda

    signature, calls = inspect.signature(gsplat.rasterization), []

    def recorder(*args, **kwargs):  # gsplat itself runs on CUDA devices only
        calls.append(signature.bind(*args, **kwargs).arguments)
        return torch.zeros(3, 72, 48, 4), torch.ones(3, 72, 48, 1), {}

    monkeypatch.setattr(gsplat, "rasterization", recorder)
    rgb, alpha, depth = rasterize_cuda(cloud(5, 9), views(), torch.ones(3, 3), True, 0.02)
    assert (rgb.shape, alpha.shape, depth.shape) == ((3, 72, 48, 3), (3, 72, 48), (3, 72, 48))
    assert calls[0]["sh_degree"] == 2 and calls[0]["rasterize_mode"] == "antialiased" and not calls[0]["packed"]
