import numpy as np
import pytest
import torch
import trimesh

from hdx_cli.camera import Cameras, look_at
from hdx_cli.mesh import depth_buffer, sample_surface, uniform_laplacian, unproject, vertex_normals


@pytest.fixture
def camera() -> Cameras:
    viewmats = look_at(torch.tensor([[0.3, 0.2, 3.0]]), torch.tensor([0.0, 0.0, 0.0]))
    return Cameras(viewmats, torch.tensor([[[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]]]), 64, 48)


@pytest.fixture
def sphere() -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=3, radius=1.0)


def test_depth_buffer_agrees_with_ray_casting(camera, sphere):
    faces = sphere.faces.astype(np.int32)
    buffer = depth_buffer(np.asarray(sphere.vertices), faces, camera)
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    # analytic sphere as the oracle: |origin + t direction| = 1
    origin = camera.positions()[0].numpy().astype(float)
    direction = unproject(x, y, np.ones_like(x), camera) - origin
    b = (direction * origin).sum(-1)
    discriminant = b**2 - (direction**2).sum(-1) * ((origin**2).sum() - 1.0)
    hit = discriminant > 0
    depth = (-b - np.sqrt(np.maximum(discriminant, 0))) / (direction**2).sum(-1)
    agree = hit & buffer.covered
    # a level-3 icosphere lies up to 0.4 % inside the sphere, more at grazing pixels near the outline
    assert (hit != buffer.covered).sum() < 0.05 * hit.sum()
    assert np.median(np.abs(buffer.depth - depth)[agree]) < 0.005
    corners = sphere.vertices[faces[buffer.face[agree]]]
    second, third = buffer.barycentric[agree].T
    surface = (
        corners[:, 0] * (1 - second - third)[:, None] + corners[:, 1] * second[:, None] + corners[:, 2] * third[:, None]
    )
    projected = camera.project(torch.from_numpy(surface).float())[0][0].numpy()
    # screen-space linear weights: exact only up to the perspective within one small triangle
    assert np.abs(projected - np.stack([x[agree], y[agree]], -1)).max() < 0.2


def test_unproject_inverts_project(camera):
    points = np.random.default_rng(0).normal(size=(20, 3)) * 0.5
    pixels, depth = camera.project(torch.from_numpy(points).float())
    back = unproject(
        pixels[0, :, 0].double().numpy(), pixels[0, :, 1].double().numpy(), depth[0].double().numpy(), camera
    )
    np.testing.assert_allclose(back, points, atol=1e-5)  # float32 projection


def test_vertex_normals_of_a_sphere_point_outwards(sphere):
    normals = vertex_normals(np.asarray(sphere.vertices), sphere.faces.astype(np.int32))
    assert (np.sum(normals * sphere.vertices, axis=1) > 0.999).all()


def test_laplacian_of_a_constant_is_zero_and_loose_vertices_are_left_alone(sphere):
    faces = sphere.faces.astype(np.int32)
    laplacian = uniform_laplacian(faces, len(sphere.vertices) + 1)
    constant = laplacian @ np.ones(len(sphere.vertices) + 1)
    np.testing.assert_allclose(constant, 0.0, atol=1e-12)
    assert laplacian[-1].nnz == 0 or np.abs(laplacian[-1]).max() == 0


def test_surface_samples_are_even(sphere):
    face, weights = sample_surface(
        np.asarray(sphere.vertices), sphere.faces.astype(np.int32), 20000, np.random.default_rng(0)
    )
    np.testing.assert_allclose(weights.sum(1), 1.0)
    assert (weights >= 0).all()
    points = np.einsum("pk,pka->pa", weights, sphere.vertices[sphere.faces[face]])
    assert abs(len(points) - 20000) < 500  # stochastic rounding per face: std about sqrt(1280)/2
    octants = np.bincount((points > 0) @ [1, 2, 4], minlength=8) / len(points)
    assert np.abs(octants - 1 / 8).max() < 0.01  # 4 standard deviations of a fair share
