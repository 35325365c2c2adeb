"""Views, crops and sides; the protocol against hand values and an independent SSIM; folders that do not match."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hdx_cli.camera import Cameras, look_at, orbit_of
from hdx_cli.errors import InputRejected, NothingToDo, UsageError
from hdx_cli.evaluation import compare, folders, metrics, protocol, tables
from hdx_cli.evaluation.folders import Picture

NONE = protocol.Networks()


def picture(seed: int = 0, height: int = 96, width: int = 64, shift: int = 0) -> Picture:
    """A grainy ellipse over white."""
    noise = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    alpha = ((x / 0.5) ** 2 + (y / 0.8) ** 2 < 1).float()
    rgb = (0.2 + 0.5 * noise) * alpha[..., None] + 1 - alpha[..., None]
    return Picture(rgb.roll(shift, 1), alpha.roll(shift, 1), True)


def save(folder: Path, pictures: list[Picture], mode: str = "RGBA", names: list[str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(pictures):
        colours = (one.rgb - 1 + one.alpha[..., None]) if mode == "RGBA" else one.rgb
        pixels = torch.cat([colours, one.alpha[..., None]], -1) if mode == "RGBA" else colours
        name = names[index] if names else f"{index:02d}.png"
        Image.fromarray((pixels * 255).round().byte().numpy(), mode).save(folder / name)
    return folder


class Told:
    """A progress that remembers what it was warned of."""

    def __init__(self):
        self.lines: list[str] = []

    def start(self, task: str, total: int | None = None) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def warn(self, code: str, message: str) -> None:
        self.lines.append(message)


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 13 of Wang et al. 2004 in float64, window by window, images zero outside."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    total = []
    for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):
        x, y = np.pad(x, 5), np.pad(y, 5)
        blocks = [np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y)]
        mx, my = ((block * window).sum((2, 3)) for block in blocks)
        xx, yy, xy = ((p * q * window).sum((2, 3)) for p, q in ((blocks[0],) * 2, (blocks[1],) * 2, blocks))
        c1, c2 = 0.01**2, 0.03**2
        up = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
        total.append(up / ((mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)))
    return float(np.mean(total))


def test_scores_of_one_view_against_their_definitions():
    ours, true = picture(0), picture(1, shift=4)
    row, features = protocol.score_views([(ours, true)], np.zeros(1), NONE)
    scores, features_there = row["views"][0], bool(features)
    a, b = ours.rgb.double().numpy(), true.rgb.double().numpy()
    union = ((ours.alpha > 0.5) | (true.alpha > 0.5)).numpy()
    both = ((ours.alpha > 0.5) & (true.alpha > 0.5)).numpy()
    assert scores["psnr_full_db"] == pytest.approx(-10 * math.log10(((a - b) ** 2).mean()), abs=1e-4)
    assert scores["psnr_fg_db"] == pytest.approx(-10 * math.log10(((a - b)[union] ** 2).mean()), abs=1e-4)
    assert scores["ssim_full"] == pytest.approx(ssim_by_definition(a, b), abs=1e-5)  # the kernel is float32
    assert scores["iou"] == pytest.approx(both.sum() / union.sum(), abs=1e-6)
    assert not features_there and "seam_gap_db" not in row


def test_the_background_flatters_every_framing_but_the_foreground():
    def padded(one: Picture) -> Picture:
        wide = [
            torch.nn.functional.pad(one.rgb, (0, 0, 40, 40), value=1.0),
            torch.nn.functional.pad(one.alpha, (40, 40)),
        ]
        return Picture(*wide, True)

    ours, true = picture(0), picture(1, shift=4)
    near, _ = protocol.score_views([(ours, true)], np.zeros(1), NONE)
    far, _ = protocol.score_views([(padded(ours), padded(true))], np.zeros(1), NONE)
    near, far = near["views"][0], far["views"][0]
    assert far["psnr_full_db"] > near["psnr_full_db"] + 2
    assert far["psnr_fg_db"] == pytest.approx(near["psnr_fg_db"], abs=1e-4)
    assert far["psnr_crop_db"] == pytest.approx(near["psnr_crop_db"], abs=1e-4)  # the square is the same


def test_equal_pictures_and_empty_ones_have_means():
    same = picture()
    empty = Picture(torch.ones(96, 64, 3), torch.zeros(96, 64), True)
    row, _ = protocol.score_views([(same, same), (empty, empty), (same, same)], np.array([0.0, 90.0, 90.0]), NONE)
    assert row["views"][0]["psnr_full_db"] == 100 and row["views"][0]["sharpness"] == pytest.approx(1)
    assert row["views"][1]["psnr_fg_db"] is None
    assert row["means"]["side"]["psnr_fg_db"] == 100  # of the one view that has it
    assert row["means"]["back"]["psnr_fg_db"] is None
    json.dumps(row, allow_nan=False)


def test_the_square_crop_shows_what_lies_in_it():
    alpha = torch.zeros(1024, 700)
    alpha[100:900, 200:400] = 1
    assert metrics.square_round(alpha) == (300 - 450, 500 - 450, 900)
    image = torch.zeros(60, 40, 3)
    image[20:30, 10:20] = torch.tensor([1.0, 0.5, 0.0])
    whole = metrics.square_crop(image, (10, 20, 10), 10)
    assert torch.allclose(whole, torch.tensor([1.0, 0.5, 0.0]).expand(10, 10, 3))
    outside = metrics.square_crop(image, (-10, 20, 10), 10)
    assert outside.min() == 1


def test_cameras_tell_the_sides_as_an_even_orbit_does():
    camera = Cameras(look_at(torch.tensor([[0.3, 1.5, 4.0]]), torch.tensor([0.0, 1.0, 0.0])), torch.eye(3)[None], 8, 8)
    rotations = orbit_of(camera, 18).viewmats[:, :3, :3].numpy()
    found, even = metrics.away_from(rotations), metrics.even_orbit(18)
    assert found == pytest.approx(even, abs=0.05)  # the arc cosine of float32 near 0
    for name, inside in metrics.sides_of(found).items():
        assert np.array_equal(inside, metrics.sides_of_orbit(18)[name])
    assert metrics.even_orbit(18, 3)[3] == 0 and metrics.even_orbit(18, 3)[12] == 180


def test_means_are_of_views_first_and_of_people_then(tmp_path):
    views = [{"x": float(i), "y": None if i == 1 else 1.0} for i in range(4)]
    means = protocol.set_means(views, metrics.even_orbit(4), 0)
    assert means["all"] == {"x": 1.5, "y": 1.0} and means["without_input"]["x"] == 2
    assert means["side"]["x"] == 2 and means["back"]["x"] == 2 and means["front"]["x"] is None
    rows = [{"means": {"all": {"x": value}}, "loop_gap_db": value} for value in (1.0, 2.0, 6.0)]
    found = protocol.summary(rows)
    assert found["all"]["x"]["mean"] == 3 and found["all"]["x"]["people"] == 3
    assert 1 <= found["all"]["x"]["low"] < 3 < found["all"]["x"]["high"] <= 6
    assert found["orbit"]["loop_gap_db"]["mean"] == 3
    assert protocol.summary(rows, seed=0) == found and protocol.summary(rows[:1])["all"]["x"]["low"] is None


def test_seam_and_loop_are_those_of_whole_stacks():
    views = [picture(seed, shift=seed) for seed in range(5)]
    row, _ = protocol.score_views([(view, view) for view in views], metrics.even_orbit(5), NONE, closing=picture(9))
    frames = torch.stack([view.rgb for view in views])
    assert row["seam_gap_db"] == row["true_seam_gap_db"] == pytest.approx(metrics.seam_gap_db(frames), abs=1e-5)
    assert row["loop_gap_db"] == pytest.approx(metrics.loop_gap_db(torch.stack([views[0].rgb, picture(9).rgb])))


def test_identity_is_a_cosine_with_the_face_of_the_true_input_view():
    def embed(rgb: torch.Tensor) -> torch.Tensor | None:
        mean = rgb.mean((0, 1))
        return None if mean[0] > 0.99 else mean

    red, green = (
        Picture(torch.tensor(c).expand(32, 32, 3), torch.ones(32, 32), True) for c in ([0.9, 0, 0], [0.0, 1, 0])
    )
    faceless = Picture(torch.ones(32, 32, 3), torch.ones(32, 32), True)
    pairs = [(green, red), (red, green), (faceless, green), (red, green)]
    away = np.array([0.0, 20, 40, 180])
    row, _ = protocol.score_views(pairs, away, protocol.Networks(identity=embed))
    assert [view["identity_cosine"] for view in row["views"]] == [pytest.approx(0), pytest.approx(1), None, None]


def test_views_of_other_sizes_are_refused():
    with pytest.raises(UsageError, match="cannot be compared"):
        protocol.score_views([(picture(), picture(height=80))], np.zeros(1), NONE)


def test_two_folders_are_matched_scored_and_written(tmp_path):
    people = {"anna": 0, "ben": 10}
    for name, seed in people.items():
        true = [picture(seed + view) for view in range(3)]
        save(tmp_path / "gt" / name, true, "RGB")
        ours = [picture(seed + view, shift=2) for view in range(4)]
        save(tmp_path / "pred" / name / "views", ours, names=["0.png", "1.png", "2.png", "3.png"])
    told = Told()
    result, grid = compare.evaluate(tmp_path / "pred", tmp_path / "gt", NONE, progress=told)
    assert [subject["name"] for subject in result["subjects"]] == ["anna", "ben"]
    assert all(len(subject["views"]) == 3 and "loop_gap_db" in subject for subject in result["subjects"])
    first = result["subjects"][0]["views"][0]
    alone, _ = protocol.score_views([(picture(0, shift=2), picture(0))], np.zeros(1), NONE)
    assert first["psnr_full_db"] == pytest.approx(alone["views"][0]["psnr_full_db"], abs=0.05)  # files are 8 bit
    assert first["iou"] == pytest.approx(alone["views"][0]["iou"])
    assert any("no alpha" in note for note in result["notes"])
    assert result["skipped"]["LPIPS"].startswith("skipped: needs the weights") and set(result["skipped"]) == {
        "LPIPS", "FID, KID", "efficientnet-lite0 distance", "ArcFace cosine",
    }  # fmt: skip
    table = tables.table_of(result)
    files = compare.write(tmp_path / "out", result, table, grid)
    kept = json.loads(Path(files["scores.json"]).read_text())
    assert kept["summary"] == json.loads(json.dumps(result["summary"]))
    text = Path(files["table.md"]).read_text()
    assert "LPIPS: skipped: needs" in text and "FID, KID: skipped: needs" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(protocol.SETS)
    whole = result["summary"]["all"]["psnr_full_db"]
    assert f"{whole['mean']:.2f} [{whole['low']:.2f}, {whole['high']:.2f}]" in lines[2]
    shown = np.asarray(Image.open(files["grid.png"]))
    assert shown.shape == grid.shape and shown.shape[0] == 22 + 4 * (tables.CELL_PX + 4)


def test_latex_is_balanced_and_escaped():
    table = tables.Table(
        "a_b", ("views", "PSNR 100 %", "x_y"), (("m & n", "1.00 [0.90, 1.10]", ""),), (1, -1), ("50 %",)
    )
    text = tables.latex(table)
    assert text.count(r"\begin{tabular}{lrr}") == text.count(r"\end{tabular}") == 1
    assert r"PSNR 100 \% $\uparrow$ & x\_y $\downarrow$ \\" in text
    assert r"m \& n & 1.00 {[}0.90, 1.10] &  \\" in text
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def test_every_mismatch_is_told_in_a_line(tmp_path):
    save(tmp_path / "gt" / "anna", [picture(view) for view in range(4)])
    save(tmp_path / "gt" / "ben", [picture()])
    save(tmp_path / "pred" / "anna", [picture(), picture(height=80), picture()])
    save(tmp_path / "pred" / "carl", [picture()])
    told = Told()
    with pytest.raises(InputRejected, match="and 3 more"):
        compare.evaluate(tmp_path / "pred", tmp_path / "gt", NONE, progress=told)
    assert [any(part in line for line in told.lines) for part in ("ben", "carl", "03.png", "64 x 80 px, but")] == [
        True
    ] * 4
    assert len(told.lines) == 4 and not any("\n" in line for line in told.lines)


def test_views_with_other_names_are_matched_in_order(tmp_path):
    save(tmp_path / "gt", [picture(view) for view in range(3)], names=["a1.png", "a2.png", "a10.png"])
    save(tmp_path / "pred", [picture(view) for view in range(3)], names=["x.png", "y.png", "z.png"])
    told = Told()
    result, _ = compare.evaluate(tmp_path / "pred", tmp_path / "gt", NONE, progress=told)
    assert all(view["iou"] == 1 and view["psnr_full_db"] > 40 for view in result["subjects"][0]["views"])
    assert len(told.lines) == 1 and "in order" in told.lines[0]


def test_what_is_no_picture_is_refused_in_one_line(tmp_path):
    good = save(tmp_path / "gt", [picture()])
    for name, content in {"empty": b"", "text": b"hello" * 99, "cut": (good / "00.png").read_bytes()[:200]}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "00.png").write_bytes(content)
        with pytest.raises(InputRejected, match="00.png") as caught:
            compare.evaluate(folder, good, NONE)
        assert "\n" not in caught.value.message
    big = tmp_path / "big"
    big.mkdir()
    Image.new("1", (4000, 4000)).save(big / "00.png")
    with pytest.raises(InputRejected, match="6 megapixels"):
        compare.evaluate(big, good, NONE)
    for folder in (tmp_path / "nowhere", tmp_path / "gt" / "00.png"):
        with pytest.raises(NothingToDo):
            compare.evaluate(folder, good, NONE)
    (tmp_path / "void").mkdir()
    with pytest.raises(NothingToDo, match="no pictures"):
        compare.evaluate(tmp_path / "void", good, NONE)


@pytest.mark.parametrize(
    "content", [b"", b"[[[", b"[" * 100_000, b'{"viewmats": 3}', b'{"viewmats": [[[NaN]]]}', b'{"viewmats": [["a"]]}']
)
def test_damaged_cameras_are_refused(tmp_path, content):
    save(tmp_path / "gt", [picture()])
    (tmp_path / "gt" / "cameras.json").write_bytes(content)
    with pytest.raises(InputRejected, match="cameras.json"):
        compare.evaluate(tmp_path / "gt", tmp_path / "gt", NONE)


def test_the_person_is_told_apart_from_the_white_around():
    rgb = np.ones((40, 30, 3), np.float32)
    rgb[5:35, 5:25] = 0.4
    rgb[15:20, 10:15] = 1.0  # a white pocket is not background
    found = folders._not_background(rgb)
    assert found.sum() == 30 * 20 and found[17, 12] == 1 and found[0, 0] == 0
