"""The two published networks: what they are made of by their papers, what they begin as, and that all of it learns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from toy import ToyBody

from hdx_cli.avatars import animatable_gaussians as animatable
from hdx_cli.avatars import gaussian_avatar, neural
from hdx_cli.avatars.base import posed
from hdx_cli.bodies import anny
from hdx_cli.gaussians import Gaussians, sh_from_rgb

TINY_UV = gaussian_avatar.Profile(side=24, feature_side=8, channels=4, width=8)
TINY_MAPS = animatable.Profile(rows=32, columns=16, channels=(4, 6, 8, 8), style=8)


def some(count: int, round_ones: bool) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    scales = 0.004 + 0.02 * torch.rand(count, 3, generator=generator)
    return Gaussians(
        torch.randn(count, 3, generator=generator),
        neural.unit(torch.randn(count, 4, generator=generator)),
        scales[:, :1].expand(-1, 3).contiguous() if round_ones else scales,
        0.2 + 0.7 * torch.rand(count, generator=generator),
        sh_from_rgb(0.1 + 0.8 * torch.rand(count, 3, generator=generator)),
    )


def uv_network() -> gaussian_avatar.GaussianAvatarNet:
    torch.manual_seed(0)
    texels = torch.arange(0, 24 * 24, 5)
    return gaussian_avatar.GaussianAvatarNet(TINY_UV, some(len(texels), True), texels, 24, 24)


def map_network() -> animatable.AnimatableGaussiansNet:
    torch.manual_seed(0)
    texels = torch.arange(3, 2 * 32 * 16, 7)
    return animatable.AnimatableGaussiansNet(TINY_MAPS, some(len(texels), False), texels, torch.randn(3, 16, 8))


BOTH = pytest.mark.parametrize("make", [uv_network, map_network])


@BOTH
def test_a_new_network_makes_its_base(make: Callable) -> None:
    network = make()
    made = network()
    # a sigmoid of a logit is right to some ulps
    for name in ("means", "quats", "scales", "opacities"):
        assert torch.allclose(getattr(made, name), getattr(network, name), rtol=1e-5, atol=1e-7), name
    assert torch.allclose(made.rgb(), network.rgb, atol=1e-6)


@BOTH
def test_gradients_reach_every_parameter(make: Callable) -> None:
    network = make()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(2)
    # after one step the last layers are no longer zero, and what lies before them is heard
    for _ in range(2):
        made = network()
        optimizer.zero_grad()
        values = torch.cat([made.means.flatten(), made.quats.flatten(), torch.log(made.scales).flatten(),
                            torch.logit(made.opacities.clamp(0.01, 0.99)), made.sh.flatten()])  # fmt: skip
        (values * torch.randn(values.shape, generator=generator)).sum().backward()
        optimizer.step()
    missing = [name for name, parameter in network.named_parameters()
               if parameter.grad is None or not parameter.grad.abs().sum() > 0]  # fmt: skip
    # a bias in front of a batch norm moves nothing, whatever it is
    assert [name for name in missing if not name.endswith("linear.bias")] == []


@BOTH
def test_gradient_against_differences(make: Callable) -> None:
    network = make().double()
    for name, buffer in network.named_buffers():
        assert buffer.dtype in (torch.float64, torch.int64), name
    torch.manual_seed(4)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    parameter = next(
        p for name, p in network.named_parameters() if name in ("geo_feature", "colour.encoder.0.first.weight")
    )
    weights = [torch.randn_like(getattr(network(), name)) for name in ("means", "scales", "sh")]

    def value() -> torch.Tensor:
        made = network()
        return sum(
            (weight * getattr(made, name)).sum()
            for weight, name in zip(weights, ("means", "scales", "sh"), strict=True)
        )

    (gradient,) = torch.autograd.grad(value(), parameter)
    direction = torch.randn_like(parameter)
    with torch.no_grad():
        parameter += 1e-6 * direction
        above = float(value())
        parameter -= 2e-6 * direction
        below = float(value())
    assert (above - below) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_round_gaussians_stay_round() -> None:
    network = uv_network()
    torch.manual_seed(3)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    made = network()
    assert torch.equal(made.scales, made.scales[:, :1].expand(-1, 3))
    assert not torch.allclose(made.scales, network.scales)
    assert torch.equal(made.opacities, network.opacities) and torch.equal(made.quats, network.quats)


def test_sizes_of_gaussian_avatar_as_published() -> None:
    decoder = gaussian_avatar.ShapeDecoder(64 + 2, 128, True)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 185_863
    assert [layer.linear.in_features for layer in decoder.trunk] == [66, 128, 128, 128, 128 + 66]
    network = gaussian_avatar.empty(gaussian_avatar.PAPER, 10, 512, 512)
    convolutions = sum(parameter.numel() for parameter in network.geom_conv.parameters())
    assert convolutions == 3 * 5 * 5 * 64 * 64
    assert network.geo_feature.shape == (1, 64, 128, 128)
    assert round((convolutions + 185_863) / 1e6, 1) == 0.5


def test_sizes_of_animatable_gaussians_as_published() -> None:
    network = animatable.empty(animatable.PAPER, 10, 1024, 1024)
    for net, maps in ((network.colour, 3), (network.position, 3), (network.other, 8)):
        assert [down.second.out_channels for down in net.encoder] == [256, 512, 512, 512, 512]
        for decoder in (net.front, net.back):
            assert [pair[1].conv.weight.shape[0] for pair in decoder.pairs] == [512, 512, 512, 256, 128, 64]
            assert {output.conv.weight.shape[0] for output in decoder.outputs} == {4 * maps}
        # 74.5 M were counted in the authors' networks; noise strengths and filters are not told
        assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(74.5e6, rel=0.01)
    assert network.positions.shape == (3, 512, 512)


def test_wavelets_are_orthonormal_and_have_their_inverse() -> None:
    image = torch.randn(1, 3, 6, 8)
    bands = animatable.haar(image)
    assert torch.allclose(animatable.from_haar(bands), image, atol=1e-6)
    assert float(bands.square().sum()) == pytest.approx(float(image.square().sum()), rel=1e-5)
    assert torch.allclose(animatable.haar(torch.ones(1, 1, 2, 2))[0, :, 0, 0], torch.tensor([2.0, 0, 0, 0]))


def test_modulated_convolution_keeps_variance() -> None:
    torch.manual_seed(0)
    conv = animatable.ModulatedConv(32, 16, 3, 8)
    image = torch.randn(1, 32, 40, 40)
    for style in (torch.zeros(8), 5 * torch.randn(8)):
        with torch.no_grad():
            made = conv(image, style)[..., 1:-1, 1:-1]
        assert float(made.std()) == pytest.approx(1.0, abs=0.1)


def test_maps_that_do_not_halve_are_refused() -> None:
    with pytest.raises((ValueError, TypeCheckError), match="multiples of 64"):
        animatable.Profile(rows=100)


def test_posing_agrees_with_skinning_where_that_is_rigid() -> None:
    generator = np.random.default_rng(0)
    linear = np.linalg.qr(generator.normal(size=(40, 3, 3)))[0]
    linear *= np.sign(np.linalg.det(linear))[:, None, None]
    transforms = np.concatenate([linear, generator.normal(size=(40, 3, 1))], 2).astype(np.float32)
    gaussians = some(40, False)
    ours, exact = neural.Posing.of(transforms)(gaussians), posed(gaussians, transforms)

    def covariances(made: Gaussians) -> torch.Tensor:
        from hdx_cli.avatars.base import rotation_matrices

        factors = rotation_matrices(made.quats) * made.scales[:, None]
        return factors @ factors.mT

    assert torch.allclose(ours.means, exact.means, atol=1e-5)
    assert torch.allclose(covariances(ours), covariances(exact), atol=1e-7)  # of 6e-4 at most


def test_what_the_photo_saw_is_not_taught_other_colours() -> None:
    gaussians = some(3, False)
    for value in vars(gaussians).values():
        value.requires_grad_()
    made = neural.doubted(gaussians, torch.tensor([0.0, 0.5, 1.0]), 0.8)
    assert all(torch.equal(value, getattr(gaussians, name)) for name, value in vars(made).items())
    sum(value.sum() for value in vars(made).values()).backward()
    assert torch.allclose(gaussians.sh.grad[:, 0, 0], torch.tensor([1.0, 0.5, 0.0]))
    for name in ("means", "quats", "scales"):
        assert torch.allclose(getattr(gaussians, name).grad[:, 0], torch.tensor([1.0, 0.6, 0.2]))
    assert torch.allclose(gaussians.opacities.grad, torch.tensor([1.0, 0.6, 0.2]))


def test_polar_factor_against_singular_values() -> None:
    matrices = torch.eye(3) + 0.3 * torch.randn(50, 3, 3, generator=torch.Generator().manual_seed(0))
    matrices = matrices[torch.linalg.det(matrices) > 0.2]
    u, _, v = torch.linalg.svd(matrices)
    assert len(matrices) > 20
    assert torch.allclose(neural.nearest_rotations(matrices), u @ v, atol=1e-4)


def test_atlas_of_the_body_lies_on_it_and_shows_every_part() -> None:
    model = anny.load()
    vertices = model.rest(model.default_shape).vertices
    atlas = gaussian_avatar.atlas_of(model, vertices, 96)
    assert atlas.barycentric.min() > -1e-3 and np.allclose(atlas.barycentric.sum(1), 1, atol=1e-6)
    assert len(np.unique(atlas.texels)) == len(atlas.texels) > 0.5 * 96 * 96
    assert set(model.parts[atlas.vertices[:, 0]]) == set(model.parts)


def test_strides_are_those_of_the_stretched_way_and_end_at_seams() -> None:
    texels = np.arange(12)  # 3 rows of 4
    atlas = gaussian_avatar.Atlas(3, 4, texels, np.zeros((12, 3), int), np.zeros((12, 3)))
    means = np.stack([0.001 * (texels % 4), 0.01 * (texels // 4), np.zeros(12)], 1).astype(np.float32)
    assert np.allclose(gaussian_avatar.strides(atlas, means), 0.01, atol=1e-7)
    means[8:, 1] += 1.0
    assert np.allclose(gaussian_avatar.strides(atlas, means), [0.01] * 8 + [0.001] * 4, atol=1e-7)


def test_a_body_without_texture_has_its_front_and_back_side_by_side() -> None:
    model = ToyBody()
    vertices = model.rest(np.zeros(1)).vertices
    atlas = gaussian_avatar.atlas_of(model, vertices, 96)
    points = np.einsum("pk,pka->pa", atlas.barycentric, vertices[atlas.vertices])
    on_back = atlas.texels % atlas.columns >= atlas.columns // 2
    assert points[on_back, 2].mean() < -0.05 and points[~on_back, 2].mean() > 0.05


def test_edges_of_maps_meet_half_way() -> None:
    rows, columns = 8, 8
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    place = np.flatnonzero(inside)
    texels = np.concatenate([place, 64 + place])
    means = np.zeros((32, 3))
    means[:16, 2], means[16:, 2] = 0.02, -0.02
    moved, factors = animatable.hemmed(texels, means, np.tile(0.001 * np.eye(3), (32, 1, 1)), rows, columns)
    row, column = np.divmod(place, 8)
    edge = np.tile((row == 2) | (row == 5) | (column == 2) | (column == 5), 2)
    assert edge.sum() == 2 * 12
    assert np.allclose(np.abs(moved[edge, 2]), 0.01) and np.allclose(np.abs(moved[~edge, 2]), 0.02)
    assert np.allclose(np.abs(factors[edge, 2, 2]), animatable.HEM * 0.04) and (factors[~edge, 2, 2] == 0.001).all()


def test_canonical_views_lie_on_the_avatar(toy_avatar) -> None:
    maps = animatable.canonical_views(toy_avatar, 64, 32)
    means = toy_avatar.canonical.means.numpy()
    assert len(np.unique(maps.texels)) == len(maps.texels) > 300
    apart = np.median(neural.spacing(means))
    off = np.linalg.norm(maps.means - means[maps.nearest], axis=1)
    # at the edges they lie up to a quarter of what they close further in
    assert off.max() < animatable.STRAY * apart + 0.25 * animatable.THICKEST_M
    assert np.quantile(off, 0.8) < animatable.STRAY * apart
    back = maps.texels >= 64 * 32
    assert maps.means[back, 2].mean() < -0.05 and maps.means[~back, 2].mean() > 0.05
    # one place, one column: on both maps x grows with the column
    for side in (back, ~back):
        column = maps.texels[side] % 32
        assert np.corrcoef(column, maps.means[side, 0])[0, 1] > 0.99
    middle = maps.means[~back & (np.abs(maps.means[:, 1] - 1.45) < 0.02)]
    assert middle[:, 0].max() - middle[:, 0].min() == pytest.approx(0.26, abs=0.06)  # the head, by texels of 2.6 cm
