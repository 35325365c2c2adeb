"""Folders of SVD's layout: the published structure without its memory, and tiny ones with random weights."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from diffusers.models.attention import TemporalBasicTransformerBlock
from safetensors.torch import load_file, save_file

from hdx_cli.errors import HdxError, UsageError, WeightsError
from hdx_cli.humanfixer import checkpoint, svd
from hdx_cli.humanfixer.attention import DecoupledFaceAttention, FrameAttention, install_attention, set_face_scale
from hdx_cli.humanfixer.diffusion import karras_sigmas
from hdx_cli.humanfixer.restorer import HumanFixer, Restorer
from hdx_cli.humanfixer.unet import SVD, TINY, build_unet, checked_config

# unet/config.json of stable-video-diffusion-img2vid; that of -xt differs in num_frames alone
PUBLISHED = {
    "_class_name": "UNetSpatioTemporalConditionModel", "_diffusers_version": "0.24.0.dev0",
    "addition_time_embed_dim": 256, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
    "in_channels": 8, "layers_per_block": 2, "num_attention_heads": [5, 10, 20, 20], "num_frames": 14,
    "out_channels": 4, "projection_class_embeddings_input_dim": 768, "sample_size": 96,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3],
}  # fmt: skip
H, W = 48, 32


def write_folder(folder, variant=None, shard="10GB"):
    """A checkpoint of the published layout, written by diffusers, with tiny random networks."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(in_channels=8, out_channels=4, **TINY)
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1
    )
    unet.save_pretrained(folder / "unet", variant=variant, max_shard_size=shard)
    vae.save_pretrained(folder / "vae", variant=variant)
    EulerDiscreteScheduler(prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0).save_pretrained(
        folder / "scheduler"
    )
    parts = {"unet": ["diffusers", type(unet).__name__], "vae": ["diffusers", type(vae).__name__]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline", **parts}))
    return unet.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("svd")
    return folder, write_folder(folder)


@pytest.fixture
def copy(published, tmp_path):
    return shutil.copytree(published[0], tmp_path / "copy")


def arguments():
    generator = torch.Generator().manual_seed(1)
    rgb, alpha = torch.rand(18, H, W, 3, generator=generator), torch.zeros(18, H, W)
    alpha[:, 6:-6, 8:-8] = 1
    rgb = rgb * alpha[..., None] + 1 - alpha[..., None]
    return dict(rgb=rgb, alpha=alpha, seen=alpha, photo_rgb=rgb[0], photo_alpha=alpha[0])


def test_the_published_network_has_64_attentions_and_16_are_masked():
    config = checked_config(PUBLISHED)
    assert {**config, "num_frames": 25} == SVD
    with torch.device("meta"):
        stock = UNetSpatioTemporalConditionModel.from_config(PUBLISHED)
        ours = build_unet(config, 8, 4, from_scratch=False)
        install_attention(ours, "cyclic_mask", "clip")
    assert svd.difference(svd.shapes_of(stock), svd.shapes_of(ours)) is None
    assert sum(parameter.numel() for parameter in stock.parameters()) == 1_524_623_082
    processors = ours.attn_processors
    assert len(processors) == 64
    masked = [name for name, processor in processors.items() if isinstance(processor, FrameAttention)]
    assert len(masked) == 16 == sum(isinstance(m, TemporalBasicTransformerBlock) for m in ours.modules())
    assert all("temporal_transformer_blocks.0.attn1" in name and processors[name].last == 18 for name in masked)


def test_a_published_folder_is_svd_conditioned_on_coarse_views(published):
    folder, stock = published
    restorer = checkpoint.load_restorer(folder)
    model = restorer.model
    assert (model.config.identity, model.config.steps, model.config.sigma_start) == ("none", 25, 700.0)
    state = model.unet.state_dict()
    for name, value in stock.state_dict().items():  # 8 channels strictly, what was added is zero
        assert torch.equal(state[name][:, :8] if name == "conv_in.weight" else state[name], value), name
    assert (state["conv_in.weight"][:, 8:] == 0).all()
    install_attention(model.unet, "cyclic", "none")  # the mask is what differs from the published network
    given = arguments()
    views = torch.cat([given["rgb"], given["alpha"][..., None]], -1).permute(0, 3, 1, 2)[None]
    made = model.conditions(
        views, given["seen"][None], views[:, 0], torch.zeros(1, *model.identity.face_shape), torch.tensor([True])
    )
    z, sigma = torch.randn(1, 19, 4, H // 8, W // 8), torch.tensor([3.0])
    mode = model.codec.network.encode(2 * views[0, :, :3] - 1).latent_dist.mode()
    unscaled = torch.cat([mode, mode[:1]])[None]
    torch.testing.assert_close(made.channels[:, :, :4], unscaled, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        ids = torch.tensor([[6.0, 127.0, 0.02]])
        expected = stock(torch.cat([z / 10**0.5, unscaled], 2), 0.25 * sigma.log(), torch.zeros(1, 1, 64), ids).sample
        torch.testing.assert_close(model(z, sigma, made), expected, rtol=1e-4, atol=1e-4)


def test_it_runs_and_survives_the_disk_unchanged(published, tmp_path):
    restorer = checkpoint.load_restorer(published[0], dtype=torch.float16)
    model = restorer.model
    assert model.unet.dtype == torch.float16 and model.codec.network.dtype == torch.float32
    model.unet.float()
    checkpoint.save_weights(tmp_path / checkpoint.NAME, model)
    shutil.copytree(published[0] / "vae", tmp_path / "vae")
    again = checkpoint.load_restorer(tmp_path)
    assert again.model.config == model.config
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in model.state_dict().items())
    ours, theirs = (each(**arguments(), steps=2, seed=1) for each in (restorer, again))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert ours[0].shape == (18, H, W, 3) and ours[0].isfinite().all() and 0 <= ours[1].min() and ours[1].max() <= 1
    torch.testing.assert_close(checkpoint.load_restorer(published[0])(**arguments(), steps=2, seed=1)[0][0], ours[0][0],
                               atol=0.05, rtol=0)  # fmt: skip


def test_its_sigmas_are_those_of_the_published_scheduler():
    stock = EulerDiscreteScheduler(
        prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        timestep_type="continuous", timestep_spacing="leading", steps_offset=1, beta_start=0.00085, beta_end=0.012,
        beta_schedule="scaled_linear",
    )  # fmt: skip
    stock.set_timesteps(25)
    torch.testing.assert_close(karras_sigmas(25, 700.0, 0.002), stock.sigmas, rtol=1e-4, atol=0)


@pytest.mark.parametrize("variant, shard", [("fp16", "10GB"), (None, "3MB"), ("fp16", "3MB")])
def test_variants_and_split_weights(published, tmp_path, variant, shard):
    write_folder(tmp_path, variant, shard)
    parts = svd.weight_files(tmp_path / "unet", svd.STEM)
    assert (len(parts) > 1) == (shard == "3MB") and all(("fp16" in part.name) == bool(variant) for part in parts)
    config = svd.read_settings(tmp_path, "none")
    state, expected = svd.load_unet(tmp_path, config), published[1].state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_of_two_precisions_the_one_that_computes_is_read(copy):
    half = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(copy / "unet" / "diffusion_pytorch_model.safetensors", half)
    assert svd.weight_files(copy / "unet", svd.STEM, half=True) == [half]
    assert svd.weight_files(copy / "unet", svd.STEM) == [copy / "unet" / "diffusion_pytorch_model.safetensors"]


def change_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNET = "unet/diffusion_pytorch_model.safetensors"
FAULTS = {
    "missing": lambda f: change_weights(f / UNET, lambda t: t.pop("conv_out.bias")),
    "not this network's": lambda f: change_weights(f / UNET, lambda t: t.update(extra=torch.zeros(1))),
    "another shape": lambda f: change_weights(f / UNET, lambda t: t.update({"conv_out.bias": torch.zeros(5)})),
    "not finite": lambda f: change_weights(f / UNET, lambda t: t["conv_out.bias"].fill_(float("nan"))),
    "not a whole safetensors": lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-7]),
    "not there": lambda f: (f / UNET).unlink(),
    "channels in": lambda f: change_json(f / "unet/config.json", in_channels=9),
    "layers_per_block": lambda f: change_json(f / "unet/config.json", layers_per_block=10**9),
    "block_out_channels": lambda f: change_json(f / "unet/config.json", block_out_channels=[10**9, 64]),
    "do not fit": lambda f: change_json(f / "unet/config.json", num_attention_heads=[3, 5]),
    "down_block_types": lambda f: change_json(f / "unet/config.json", down_block_types=["os.system", "x"]),
    "Expecting": lambda f: (f / "unet/config.json").write_text("{"),
    "recursion": lambda f: (f / "unet/config.json").write_text("[" * 100_000),
    "not a JSON object": lambda f: (f / "unet/config.json").write_text("[]"),
    "scaling_factor": lambda f: change_json(f / "vae/config.json", scaling_factor=float("nan")),
    "channels and layers": lambda f: change_json(f / "vae/config.json", layers_per_block="all"),
    "vae": lambda f: shutil.rmtree(f / "vae"),
    "not SVD's scheduler": lambda f: change_json(f / "scheduler/scheduler_config.json", prediction_type="epsilon"),
    "sigma": lambda f: change_json(f / "scheduler/scheduler_config.json", sigma_max=float("inf")),
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_is_wrong_is_told_in_a_line(copy, words):
    FAULTS[words](copy)
    with pytest.raises(WeightsError) as told:
        checkpoint.load_restorer(copy)
    assert words in told.value.message and "\n" not in told.value.message and str(copy) in told.value.message


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "gone.safetensors"])
def test_an_index_names_files_of_its_folder_only(copy, name):
    (copy / UNET).unlink()
    (copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="is not there"):
        checkpoint.load_restorer(copy)


def test_identities_that_weights_do_not_know(published, tmp_path):
    folder = published[0]
    for identity, kind in (("face", UsageError), ("clip+face", WeightsError), ("clip", WeightsError)):
        with pytest.raises(kind) as told:
            checkpoint.load_restorer(folder, identity)
        assert told.value.hint or kind is UsageError
    bundled = checkpoint.WEIGHTS
    with pytest.raises(UsageError, match="these weights know face or none"):
        checkpoint.read_plan(bundled, "clip")
    assert checkpoint.read_plan(bundled, "none").anonymous and checkpoint.read_plan(bundled).kind == "hdx"
    with pytest.raises(HdxError, match="neither"):
        checkpoint.read_plan(tmp_path)


def test_without_identity_a_face_changes_nothing(published):
    torch.manual_seed(0)
    model = HumanFixer(replace(checkpoint.read_plan(checkpoint.WEIGHTS).config, unet=dict(TINY), height=H)).eval()
    face = torch.rand(64, 64, 3)
    known, unknown = Restorer(model), Restorer(model, anonymous=True)
    assert not torch.equal(known(**arguments(), face=face)[0], known(**arguments())[0])
    assert torch.equal(unknown(**arguments(), face=face)[0], known(**arguments())[0])


def test_encoders_of_the_photo_are_asked_and_scaled(published):
    """Decoupled tokens of the photo's face: their share is lambda times what they add."""
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in published[1].state_dict().items()}
    config = replace(svd.read_settings(published[0], "clip+face"), height=H)
    codec = checkpoint.TemporalVae(svd.load_vae(published[0]))
    model = HumanFixer(config, codec, state).eval()
    asked = []

    def embed(photo):
        asked.append(photo)
        return torch.linspace(-1, 1, 512 if len(asked) % 2 else 64)

    restorer = Restorer(model, encode_face=embed, encode_image=embed)
    z, sigma = torch.randn(1, 19, 4, H // 8, W // 8), torch.tensor([2.0])
    views = torch.cat([arguments()["rgb"], arguments()["alpha"][..., None]], -1).permute(0, 3, 1, 2)[None]
    faces, clip = restorer._identity(arguments()["photo_rgb"], None)
    assert faces.shape == (1, 512) and clip.shape == (1, 1, 64) and torch.equal(asked[0], arguments()["photo_rgb"])
    given = model.conditions(views, views[:, :, 3], views[:, 0], faces, torch.tensor([True]), clip)
    assert given.context.shape == (1, 5, 64) and torch.equal(given.context[:, :1], clip)
    with torch.inference_mode():
        start = model(z, sigma, given)
        for module in model.modules():
            if isinstance(module, DecoupledFaceAttention):
                torch.nn.init.normal_(module.to_v_face.weight, std=0.1)
        learned = model(z, sigma, given)
        set_face_scale(model.unet, 0.0)
        torch.testing.assert_close(model(z, sigma, given), start)
    assert not torch.allclose(learned, start)
