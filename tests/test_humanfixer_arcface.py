"""InsightFace itself on a small pack of the real layout; detection, alignment and embedding by hand beside it."""

import cv2
import numpy as np
import pytest
import torch
from face_pack import BOX, PIXELS, POINTS, weights_of_recogniser, write_detector, write_pack, write_recogniser

from hdx_cli.errors import WeightsError
from hdx_cli.humanfixer.arcface import LICENCE, ArcFace, Face, reference_view, require_accepted

# where ArcFace wants eyes, nose and corners of the mouth in its 112 x 112 (Deng et al. 2019)
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("insightface"))


@pytest.fixture(scope="module")
def arcface(pack):
    return ArcFace(pack)


def picture(*cells):
    """640 x 640 of soft noise without red; (row, column) of cells of 32 pixels that are red."""
    rng = np.random.default_rng(0)
    rgb = cv2.GaussianBlur(rng.random((640, 640, 3)).astype(np.float32), (0, 0), 4)
    rgb[..., 0] = 0.3 * rgb[..., 0]
    for row, column in cells:
        rgb[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = [1.0, 0.2, 0.0]
    return torch.from_numpy(rgb)


def aligned(points):
    """The similarity [2 3] that brings points to the template (Umeyama 1991), worked out here."""
    source, target = points - points.mean(0), TEMPLATE - TEMPLATE.mean(0)
    u, d, vt = np.linalg.svd(target.T @ source)
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = (d * sign).sum() / (source**2).sum()
    return np.concatenate([scale * rotation, (TEMPLATE.mean(0) - scale * rotation @ points.mean(0))[:, None]], 1)


def test_a_face_is_found_aligned_and_embedded(arcface):
    rgb = picture((6, 9))
    (face,) = arcface.faces(rgb)
    corner = np.array([9 * 32, 6 * 32], np.float32)
    np.testing.assert_allclose(face.box, [*(corner - 32 * BOX[:2]), *(corner + 32 * BOX[2:])], atol=1e-3)
    np.testing.assert_allclose(face.points, corner + 32 * POINTS, atol=1e-3)
    assert face.confidence > 0.5 and face.area == pytest.approx(64 * 80)
    bytes_ = np.rint(rgb.numpy() * 255).astype(np.uint8)
    crop = cv2.warpAffine(bytes_, aligned(face.points.astype(np.float64)), (112, 112), borderValue=0.0)
    small = ((crop.astype(np.float64) - 127.5) / 127.5).reshape(PIXELS, 4, PIXELS, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    expected = weights_of_recogniser() @ small.ravel()
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(face.embedding, expected, atol=2e-3)  # crops differ by a rounding here and there
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)


def test_the_largest_of_several_and_nobody(arcface):
    two = arcface.faces(picture((6, 9), (12, 3)))
    assert len(two) == 2 and two[0].area >= two[1].area
    assert torch.equal(arcface(picture((6, 9))), torch.from_numpy(arcface.faces(picture((6, 9)))[0].embedding))
    assert arcface(picture()) is None and arcface(torch.rand(50, 30, 3) * torch.tensor([0.1, 1, 1])) is None


def face(width, height=10.0):
    return Face(np.array([5, 5, 5 + width, 5 + height], np.float32), np.zeros((5, 2), np.float32), 0.9,
                np.zeros(512, np.float32))  # fmt: skip


def test_the_reference_shows_the_largest_face():
    assert reference_view([[], [face(3), face(8)], [face(9)], [face(9)], [face(2)]]) == 2
    assert reference_view([[], []]) == reference_view([]) == 0
    assert reference_view([[face(-3)], [face(1)]]) == 1 and face(-3).area == 0


def test_terms_must_be_accepted():
    require_accepted([LICENCE])
    with pytest.raises(WeightsError, match="non-commercial") as told:
        require_accepted([])
    assert "--accept-license insightface" in told.value.hint


def test_a_pack_that_is_none(tmp_path, monkeypatch):
    def no_network(*arguments, **settings):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    for place in ("buffalo_l", tmp_path / "gone", tmp_path):  # names are never downloaded
        with pytest.raises(WeightsError, match="no folder with .onnx files"):
            ArcFace(tmp_path / place)
    (tmp_path / "det_10g.onnx").write_bytes(b"\x08garbage" * 50)
    with pytest.raises(WeightsError, match="cannot use these models"):
        ArcFace(tmp_path)
    write_detector(tmp_path / "det_10g.onnx")
    with pytest.raises(WeightsError, match="no recognition model"):
        ArcFace(tmp_path)
    write_recogniser(tmp_path / "w600k_r50.onnx", weights_of_recogniser()[:100])
    with pytest.raises(WeightsError, match="shape"):
        ArcFace(tmp_path).faces(picture((6, 9)))
    write_recogniser(tmp_path / "w600k_r50.onnx", np.full((512, 3 * PIXELS**2), np.nan, np.float32))
    with pytest.raises(WeightsError, match="not finite"):
        ArcFace(tmp_path).faces(picture((6, 9)))
