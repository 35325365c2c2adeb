"""LPIPS by its formula, the FID network by its layout, the two distances of distributions by closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hdx_cli.errors import WeightsError
from hdx_cli.evaluation import distributions, inception, lpips, protocol, tables, weight_files
from hdx_cli.evaluation.folders import Picture


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """A folder of weights with AlexNet's layout, random: the trunk in one file, the linear layers in another."""
    folder = tmp_path_factory.mktemp("alex")
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    trunk = {}
    for index, shape in shapes.items():
        size = math.sqrt(2 / math.prod(shape[1:]))
        trunk[f"features.{index}.weight"] = torch.randn(shape, generator=generator) * size
        trunk[f"features.{index}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    linear = {f"lin{k}.model.1.weight": torch.rand(1, shape[0], 1, 1, generator=generator)
              for k, shape in enumerate(shapes.values())}  # fmt: skip
    save_file(trunk | {"classifier.6.bias": torch.zeros(3)}, folder / "model.safetensors")
    save_file(linear, folder / "linear.safetensors")
    return folder, trunk, linear


def by_formula(a: torch.Tensor, b: torch.Tensor, trunk: dict, linear: dict) -> float:
    """Eq. 1 of Zhang et al. 2018 on AlexNet, layer by layer in float64."""
    mean, deviation = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])

    def taps(image: torch.Tensor) -> list[torch.Tensor]:
        def conv(x: torch.Tensor, index: int, stride: int, padding: int) -> torch.Tensor:
            weight, bias = trunk[f"features.{index}.weight"].double(), trunk[f"features.{index}.bias"].double()
            return F.relu(F.conv2d(x, weight, bias, stride, padding))

        x = (((image * 2 - 1) - mean) / deviation).double().permute(2, 0, 1)[None]
        one = conv(x, 0, 4, 2)
        two = conv(F.max_pool2d(one, 3, 2), 3, 1, 2)
        three = conv(F.max_pool2d(two, 3, 2), 6, 1, 1)
        four = conv(three, 8, 1, 1)
        return [one, two, three, four, conv(four, 10, 1, 1)]

    total = 0.0
    for k, (y, y0) in enumerate(zip(taps(a), taps(b), strict=True)):
        w = linear[f"lin{k}.model.1.weight"].flatten().double()
        height, width = y.shape[2:]
        for row in range(height):
            for column in range(width):
                u, v = y[0, :, row, column], y0[0, :, row, column]
                total += float((w * (u / u.norm() - v / v.norm()) ** 2).sum()) / (height * width)
    return total


def test_lpips_is_equation_1(alex):
    folder, trunk, linear = alex
    net, meter = lpips.load_lpips(folder)
    a, b = (torch.rand(64, 72, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert net == "alex" and meter(a, b) == pytest.approx(
        by_formula(a, b, trunk, linear), rel=1e-4
    )  # float32 against 64
    assert meter(a, a) == 0 and meter(a, b) == pytest.approx(meter(b, a), rel=1e-5)
    assert meter(a, (a + 0.05 * (b - a))) < meter(a, b)


def test_lpips_is_in_rows_and_tables_under_its_name_only(alex):
    folder = alex[0]
    networks = protocol.Networks(dict([lpips.load_lpips(folder)]))
    pair = tuple(Picture(torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(s)), torch.ones(64, 64), True)
                 for s in (0, 1))  # fmt: skip
    row, _ = protocol.score_views([pair], np.zeros(1), networks)
    meter = networks.lpips["alex"]
    assert row["views"][0]["lpips_alex_full"] == pytest.approx(meter(pair[0].rgb, pair[1].rgb))
    result = {"summary": protocol.summary([row]), "distributions": {}, "skipped": networks.skipped, "notes": [],
              "subjects": [row]}  # fmt: skip
    header = tables.table_of(result).header
    assert "LPIPS alex full" in header and "LPIPS vgg full" not in header and "LPIPS" not in header
    without = protocol.Networks()
    result = {**result, "skipped": without.skipped}
    for name in ("LPIPS", "FID"):
        column = [row[tables.table_of(result).header.index(name)] for row in tables.table_of(result).rows]
        assert set(column) <= {"skipped", ""} and "skipped" in column


def test_vgg_is_laid_out_as_torchvision_has_it():
    trunk = lpips.trunk_of("vgg")
    convolutions = [index for index, layer in enumerate(trunk) if isinstance(layer, torch.nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert sum(value.numel() for value in trunk.state_dict().values()) == 14_714_688  # of torchvision's vgg16.features
    x, shapes = torch.zeros(1, 3, 64, 64), []
    for index, layer in enumerate(trunk):
        x = layer(x)
        if index in lpips.TRUNKS["vgg"][1]:
            assert isinstance(layer, torch.nn.ReLU)
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]


def test_weights_that_do_not_fit_are_refused(alex, tmp_path, monkeypatch):
    _, trunk, linear = alex
    monkeypatch.setattr(lpips, "PACKAGES", {})

    def refused(tensors: dict, match: str) -> None:
        save_file(tensors, tmp_path / "m.safetensors")
        with pytest.raises(WeightsError, match=match) as caught:
            lpips.load_lpips(tmp_path)
        assert "\n" not in caught.value.message

    refused(trunk, "linear layers")
    refused({k: v for k, v in trunk.items() if "10" not in k} | linear, "features.10.bias and 1 more")
    refused(trunk | linear | {"features.3.weight": torch.zeros(192, 64, 3, 3)}, "features.3.weight has shape")
    refused(trunk | linear | {"features.8.bias": torch.full((256,), math.nan)}, "features.8.bias is not finite")
    refused(trunk | linear | {"features.0.weight": torch.zeros(8, 3, 11, 11)}, "neither torchvision's alexnet")
    (tmp_path / "m.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="m.safetensors"):
        lpips.load_lpips(tmp_path)
    with pytest.raises(WeightsError, match="no tensor"):
        inception.load_inception(alex[0])


def test_weights_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="owner/nothing"):
        weight_files.weights_folder("owner/nothing")
    assert weight_files.weights_folder(str(tmp_path)) == tmp_path


def inception_weights() -> dict[str, torch.Tensor]:
    """Every tensor a plain function of its name and place, so that any program can make the same."""
    tensors = {}
    for number, (name, (before, after, height, width)) in enumerate(sorted(inception.convolutions().items())):
        count = before * after * height * width
        places = torch.arange(count, dtype=torch.float64)
        weight = torch.sin(places * 12.9898 + number) * math.sqrt(4 / (count / after))
        tensors[f"{name}.conv.weight"] = weight.reshape(after, before, height, width).float()
        channels = torch.arange(after, dtype=torch.float64)
        tensors[f"{name}.bn.weight"] = (1 + 0.3 * torch.cos(channels + number)).float()
        tensors[f"{name}.bn.bias"] = (0.1 * torch.sin(channels * 1.7 + number)).float()
        tensors[f"{name}.bn.running_mean"] = (0.1 * torch.cos(channels * 0.3 + number)).float()
        tensors[f"{name}.bn.running_var"] = (1 + 0.4 * torch.sin(channels * 0.7 + number)).float()
    return tensors


def test_inception_gives_what_torch_fidelity_gives():
    """Golden: torch-fidelity 0.4.0's network with the same weights, on the same picture scaled to [-1, 1]."""
    tensors = inception_weights()
    assert sum(v.numel() for k, v in tensors.items() if "conv" in k) == 21_751_136
    rows, columns = torch.meshgrid(torch.arange(299.0), torch.arange(299.0), indexing="ij")
    image = torch.stack([0.5 + 0.5 * torch.sin(rows / 17 + columns / (5 + 3 * k)) for k in range(3)])
    found = inception.embedder_of(tensors)(image[None])[0]
    assert found.shape == (2048,)
    # folded batch norms round otherwise than separate ones
    wanted = [0.049664, 0.043482, 0.042336, 0.041049, 0.042873, 0.041983, 0.043549, 0.044148]
    assert found.reshape(8, 256).mean(1).tolist() == pytest.approx(wanted, abs=2e-6)


def test_frechet_distance_of_known_gaussians():
    one = distributions.frechet_distance(np.array([3.0]), np.array([[4.0]]), np.array([1.0]), np.array([[9.0]]))
    assert one == pytest.approx((3 - 1) ** 2 + (2 - 3) ** 2)  # of numbers: difference of means and of deviations
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 6, 6)))
    mean, other = rng.normal(size=(2, 6))
    root = scipy.linalg.sqrtm(a @ b)
    wanted = ((mean - other) ** 2).sum() + np.trace(a + b - 2 * root.real)
    assert distributions.frechet_distance(mean, a, other, b) == pytest.approx(wanted, rel=1e-8)
    assert distributions.frechet_distance(mean, a, mean, a) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = distributions.frechet_distance(turn @ mean, turn @ a @ turn.T, turn @ other, turn @ b @ turn.T)
    assert turned == pytest.approx(wanted, rel=1e-8)


def test_fid_of_fewer_pictures_than_dimensions_is_real_and_of_many_is_the_distance():
    rng = np.random.default_rng(1)
    few, others = rng.normal(size=(2, 10, 40))
    assert distributions.fid(few, others) > 0
    # the roots of 31 eigenvalues that are 0 but for rounding (1e-15) are 3e-8 each
    assert distributions.fid(few, few) == pytest.approx(0, abs=1e-5)
    many = rng.normal(size=(20_000, 3))
    assert distributions.fid(many, 2 * rng.normal(size=(20_000, 3)) + [1, 0, 0]) == pytest.approx(1 + 3, abs=0.15)


def test_kid_is_unbiased_and_by_its_formula():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)) + 1
    k = lambda x, y: (float(x @ y) / 4 + 1) ** 3  # noqa: E731
    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(5) for j in range(5) if i != j) / 20
    across = 2 * sum(k(x, y) for x in a for y in b) / 25
    assert distributions.kid(a, b) == pytest.approx(within - across, rel=1e-10)
    # of one distribution its mean is zero: 400 pairs of small sets, whose values scatter by about 1 each
    draws = [distributions.kid(*rng.normal(size=(2, 8, 4))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20 and min(draws) < 0


def test_only_sets_of_one_size_are_compared():
    with pytest.raises(ValueError, match="as many"):
        distributions.fid(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="as many"):
        distributions.kid(np.zeros((1, 3)), np.zeros((1, 3)))


def test_too_few_pictures_have_no_fid_and_many_a_warning(monkeypatch):
    rng = np.random.default_rng(3)
    monkeypatch.setattr(distributions, "LEAST_FID", 20)  # 2048 x 2048 roots of hundreds of pictures take long
    monkeypatch.setattr(distributions, "fid", lambda ours, true: float(len(ours)))

    def people(count: int) -> list[dict[str, np.ndarray]]:
        sides = ("predicted", "true")
        return [{side: rng.normal(size=(9, 2048)).astype(np.float32) for side in sides} for _ in range(count)]

    few, notes = protocol.distribution_scores(people(2))
    assert few["all"]["fid"] == "skipped: needs at least 20 pictures a side, there are 18" and not notes
    assert few["all"]["kid"] == "skipped: needs at least 50 pictures a side, there are 18"
    some, notes = protocol.distribution_scores(people(6))
    assert some["all"]["fid"] == 54.0 and some["without_input"] == {
        "images": 48, "fid": 48.0, "kid": "skipped: needs at least 50 pictures a side, there are 48",
    }  # fmt: skip
    assert isinstance(some["all"]["kid"], float) and "rank-deficient" in notes[0] and len(notes) == 1
