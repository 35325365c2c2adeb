from __future__ import annotations

import numpy as np
import pytest

from hdx_cli.avatars.canonical import HEIGHT, WIDTH, layout
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import PARTS


@pytest.fixture(scope="module")
def model():
    return anny.load()


@pytest.fixture(scope="module")
def maps(model):
    return layout(model.rest(model.default_shape).vertices, model.faces)


def test_a_texel_s_point_is_placed_on_that_texel(maps):
    side, row, column = np.nonzero(maps.covered)
    found_side, position = maps.place(maps.vertices[maps.covered], maps.barycentric[maps.covered])
    np.testing.assert_array_equal(found_side, side)
    np.testing.assert_allclose(position, np.stack([column, row], 1) + 0.5, atol=1e-9)


def test_front_is_the_front_and_heads_are_drawn_larger(model, maps):
    nose = int(np.argmax(np.where(model.parts == PARTS.index("head"), maps.template[:, 2], -9)))
    triangle = model.faces[(model.faces == nose).any(1)][:1]
    side, position = maps.place(triangle, np.full((1, 3), 1 / 3))
    assert side[0] == 0 and position[0, 1] < HEIGHT / 3
    assert (maps.position > 0).all() and (maps.position < [WIDTH, HEIGHT]).all()
    head = model.parts == PARTS.index("head")

    def texels_per_m(chosen: np.ndarray) -> float:
        return np.ptp(maps.position[chosen, 0]) / np.ptp(maps.template[chosen, 0])

    assert texels_per_m(head) > 2 * texels_per_m(model.parts == PARTS.index("foot"))


def test_the_person_s_left_is_on_the_right_of_both_maps(maps):
    x = np.einsum("shwk,shwk->shw", maps.barycentric, maps.template[maps.vertices][..., 0])
    for side in range(2):
        assert (np.diff(x[side, 40])[maps.covered[side, 40, 1:] & maps.covered[side, 40, :-1]] > 0).all()


def test_sampling_gives_back_what_was_spread(maps):
    values = np.random.default_rng(0).random((int(maps.covered.sum()), 2))
    spread = maps.spread(values)
    np.testing.assert_array_equal(spread[maps.covered], values)
    side, row, column = np.nonzero(maps.covered)
    sampled = maps.sample(spread, side, np.stack([column, row], 1) + 0.5)
    np.testing.assert_allclose(sampled, values, atol=2e-3)
    ramp = np.tile(np.arange(WIDTH, dtype=float)[:, None] + 0.5, (2, HEIGHT, 1, 1))
    np.testing.assert_allclose(maps.sample(ramp, np.array([1]), np.array([[30.25, 60.0]]))[0, 0], 30.25)


def test_blurring_brings_in_nothing_from_beside_the_body(maps):
    image = np.where(maps.covered[..., None], 0.25, 9.0).astype(np.float32)
    np.testing.assert_allclose(maps.blur(image, 3.0), 0.25, rtol=1e-4)
