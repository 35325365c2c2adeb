"""CLIP's image token by transformers, where that is installed; a tiny random network in the published layout."""

import json
import sys

import pytest
import torch

from hdx_cli.errors import WeightsError
from hdx_cli.humanfixer.clip import MEAN, STD, ClipImages


def test_without_transformers_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError) as told:
        ClipImages(tmp_path)
    assert "pip install transformers" in told.value.hint


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14,
        projection_dim=64, hidden_act="gelu",
    )  # fmt: skip
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    folder = tmp_path_factory.mktemp("clip") / "image_encoder"
    network.save_pretrained(folder)
    return folder, network


def test_it_is_transformers_network_on_the_squeezed_picture(encoder):
    folder, network = encoder
    ours = ClipImages(folder)
    assert (ours.size, ours.dimension) == (28, 64)
    rgb = torch.rand(56, 84, 3, generator=torch.Generator().manual_seed(3))
    square = torch.nn.functional.interpolate(rgb.permute(2, 0, 1)[None], (28, 28), mode="bicubic", antialias=True)
    pixels = (square.clamp(0, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        expected = network(pixel_values=pixels).image_embeds[0]
    torch.testing.assert_close(ours(rgb), expected)
    assert not torch.allclose(ours(1 - rgb), expected)


def test_a_folder_that_is_none(encoder, tmp_path):
    folder, _ = encoder
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="config.json"):
        ClipImages(tmp_path)
    for change in ({"hidden_size": 10**9}, {"hidden_act": "os.system"}, {"projection_dim": None}, {"hidden_size": 33}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError):
            ClipImages(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="weights are missing"):
        ClipImages(tmp_path)
