"""What is counted on the meta device, against hand counts and against the same network with memory."""

from dataclasses import replace

import pytest
import torch
from test_humanfixer_svd import PUBLISHED, write_folder
from torch import nn

from hdx_cli.humanfixer import costs
from hdx_cli.humanfixer.checkpoint import WEIGHTS, empty, read_plan
from hdx_cli.humanfixer.latents import BlockDct
from hdx_cli.humanfixer.restorer import Config, HumanFixer
from hdx_cli.humanfixer.unet import SVD, TINY, checked_config

RATES = costs.Rates({"convolution": 1e9, "matmul": 2e9, "attention": 5e8}, 1e10, 0.1)


def test_operations_and_bytes_by_hand():
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Flatten(2), nn.Linear(20, 7, bias=False))
    image = torch.randn(2, 4, 5, 4)
    work = costs.count(lambda: layers(image))
    assert work.operations == {
        "convolution": 2 * 9 * 4 * 6 * 2 * 20, "matmul": 2 * 20 * 7 * 2 * 6, "attention": 0.0,
    }  # fmt: skip
    assert work.written == work.peak == 4 * (2 * 6 * 20 + 2 * 6 * 7)
    queries = torch.empty(1, 2, 50, 8, device="meta")
    attention = costs.count(lambda: nn.functional.scaled_dot_product_attention(queries, queries, queries))
    assert attention.operations["attention"] == 4 * 2 * 50 * 50 * 8
    assert RATES.time_of(work) == pytest.approx(17280 / 1e9 + 3360 / 2e9 + 4 * 324 / 1e10)


def test_memory_that_is_freed_counts_once():
    def chain():
        x = torch.empty(1000, device="meta")
        for _ in range(5):
            x = x + 1
        return x

    work = costs.count(chain)
    assert (work.peak, work.written) == (8000, 24000)


def test_meta_counts_are_those_of_the_network_itself():
    torch.manual_seed(0)
    config = Config(unet=dict(TINY), height=48)
    real = HumanFixer(config).eval()
    meta = empty(config, BlockDct(config.kept).to("meta"))
    made = costs._conditions(meta, 48, 32)
    there = costs.Conditions(*(torch.zeros(part.shape) for part in vars(made).values()))
    counted = costs.unet_step(meta, 48, 32)
    ran = costs.count(lambda: real(there.start, torch.ones(1), there))
    for kind in ("convolution", "matmul"):
        assert counted.operations[kind] == ran.operations[kind] > 1e6
    assert counted.operations["attention"] > 0  # of which torch counts none on a CPU
    assert counted.peak == pytest.approx(ran.peak, rel=0.05)
    half = costs.unet_step(empty(config, BlockDct(config.kept).to("meta")), 48, 32, torch.float16)
    assert half.peak == pytest.approx(counted.peak / 2, rel=0.2) and half.total == counted.total


def test_a_plan_is_costed_part_by_part(tmp_path):
    write_folder(tmp_path)
    plan = read_plan(tmp_path)
    small, large = (costs.estimate(plan, rows, 32, steps, rates=RATES) for rows, steps in ((48, 1), (96, 3)))
    network, codec = large.parts
    assert network.bytes == 4 * network.parameters and large.weight_bytes == network.bytes + codec.bytes
    assert large.peak_bytes == large.weight_bytes + max(network.peak, codec.peak)
    assert large.offloaded_bytes == max(network.bytes + network.peak, codec.bytes + codec.peak)
    assert large.seconds == network.seconds + codec.seconds
    # twice the pixels and three times the steps; what is told of the time is the same for any size
    assert network.operations == pytest.approx(6 * small.parts[0].operations, rel=0.02)
    assert codec.peak == pytest.approx(2 * small.parts[1].peak, rel=0.05)
    half = costs.estimate(plan, 48, 32, 1, dtype=torch.float16, rates=RATES)
    assert half.parts[0].bytes == small.parts[0].bytes / 2 and half.parts[1].bytes == small.parts[1].bytes
    text = "\n".join(large.lines())
    assert "19 frames of 32x96" in text and "extrapolated" in text and large.facts()["parameters"] == large.parameters


def test_the_bundled_weights_are_costed():
    cost = costs.estimate(read_plan(WEIGHTS), rates=RATES)
    assert cost.parameters == pytest.approx(10.8e6, rel=0.05) and cost.frames == 19


@pytest.mark.slow
def test_svd_at_the_size_of_the_paper():
    """19 frames of 640 x 960: FLOPs by another way of counting, from the shapes of the published network's layers."""
    assert {**checked_config(PUBLISHED), "num_frames": 25} == SVD
    config = Config(dict(SVD), identity="none", residual=False)

    class FourLatents(BlockDct):
        def __init__(self):
            super().__init__((1, 1, 1, 1))

    model = empty(config, FourLatents().to("meta"))
    hooks, layers = [], {"convolution": 0.0, "linear": 0.0}

    def add(module, given, made):
        per_output = module.weight.numel() / module.weight.shape[0]
        layers["linear" if isinstance(module, nn.Linear) else "convolution"] += 2 * per_output * made.numel()

    for module in model.unet.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            hooks.append(module.register_forward_hook(add))
    work = costs.unet_step(model, 960, 640)
    assert work.operations["convolution"] == pytest.approx(layers["convolution"], rel=1e-6)
    attention = sum(
        4 * 19 * (9600 >> (2 * level)) ** 2 * width * sites
        for level, width, sites in ((0, 320, 5), (1, 640, 5), (2, 1280, 5), (3, 1280, 1))
    )
    # and the little of time and of tokens; torch runs a few of the linear layers as batched products, like attention
    products = work.operations["matmul"] + work.operations["attention"]
    assert products == pytest.approx(layers["linear"] + attention, rel=0.002)
    assert 0 <= layers["linear"] - work.operations["matmul"] < 0.03 * layers["linear"]
    assert 60e12 < work.total < 70e12 and 5e9 < work.peak < 9e9


def test_speeds_are_measured():
    rates = costs.measure_rates(repeats=1)
    assert min(*rates.operations.values(), rates.written) > 0 and rates.seconds > 0
    assert costs.spell(90) == "90.0 s" and costs.spell(7200) == "2.0 h" and costs.spell(3 * 86400) == "3.0 d"
    assert replace(rates, written=1.0).time_of(costs.Work({}, 2.0, 0)) == 2.0
