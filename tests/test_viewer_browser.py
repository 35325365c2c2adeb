"""The page in a real browser, against this package's own skinning and rasteriser.

Needs ``pip install playwright`` and a Chromium on the path.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from hdx_cli.avatars.base import blend, posed
from hdx_cli.bodies.base import BodyPose, joint_transforms
from hdx_cli.camera import turntable
from hdx_cli.export.glb import Animation, Rig, SkinnedGaussians, write_glb
from hdx_cli.export.glb_reader import read_glb
from hdx_cli.export.html import viewer_page, write_html
from hdx_cli.export.server import serve
from hdx_cli.gaussians import Gaussians, sh_from_rgb
from hdx_cli.rasterize import rasterize

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WIDTH, HEIGHT, BAR = 300, 360, 140
TITLE = "Ada </script> & 雪"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]


def avatar() -> SkinnedGaussians:
    """A column of 400 flat and long Gaussians, large enough for their shapes to show, over a chain of three joints."""
    generator = np.random.default_rng(5)
    count = 400
    height = generator.uniform(0, 1.5, count)
    angle = generator.uniform(0, 2 * np.pi, count)
    means = np.stack([0.15 * np.sin(angle), height, 0.15 * np.cos(angle)], 1)
    scales = np.tile([0.05, 0.012, 0.004], (count, 1))
    rgb = np.stack([0.5 + 0.5 * np.sin(angle), height / 1.5, 0.5 + 0.5 * np.cos(3 * angle)], 1).clip(0, 1)
    arrays = [means, generator.normal(size=(count, 4)), scales, generator.uniform(0.3, 1, count)]
    gaussians = Gaussians(
        *(torch.from_numpy(array.astype(np.float32)) for array in arrays), sh_from_rgb(torch.from_numpy(rgb).float())
    )
    rig = Rig(np.array([[0, 0.1, 0], [0, 0.6, 0], [0, 1.1, 0]]), np.array([-1, 0, 1]), ("root", "middle", "top"))
    weights = np.exp(-(((height[:, None] - rig.joints[:, 1] - 0.25) / 0.2) ** 2)) + 1e-3
    weights /= weights.sum(1, keepdims=True)
    # eight influences: the joints twice and a bit, so that the second set matters
    joints = np.tile([0, 1, 2, 0, 1, 2, 0, 1], (count, 1)).astype(np.uint16)
    shares = np.array([0.5, 0.5, 0.5, 0.3, 0.3, 0.5, 0.2, 0.2])
    spread = (weights[:, joints[0]] * shares).astype(np.float32)
    bend = BodyPose(_rotations(7), np.linspace([0, 0, 0], [0.1, 0.05, -0.1], 7))
    turn = BodyPose(_rotations(5)[::-1].copy(), np.zeros((5, 3)))
    animations = (Animation("bend", bend, 10.0), Animation("turn <b>", turn, 10.0, loops=True))
    return SkinnedGaussians(gaussians, joints, spread, rig, animations)


def _rotations(frames: int) -> np.ndarray:
    share = np.linspace(0, 1, frames)[:, None]
    turns = [share * [0, 0.9, 0], share * [1.1, 0, 0.3], share * [0, 0.4, -1.2]]
    return np.stack([Rotation.from_rotvec(turn).as_matrix() for turn in turns], 1)


def reference(
    subject: SkinnedGaussians, pose: BodyPose, frame: int, camera: dict[str, Any], carried: bool = True
) -> Any:
    """Our own picture [H W 3] of a frame, from the page's camera; ``carried`` False leaves the shapes as at rest."""
    rig = subject.rig
    transforms = joint_transforms(pose.rotations[frame], rig.joints, rig.parents, pose.translations[frame])
    moved = posed(subject.gaussians, blend(subject.joint_indices, subject.joint_weights, transforms))
    if not carried:
        rest = subject.gaussians
        moved = Gaussians(moved.means, rest.quats, rest.scales, rest.opacities, rest.sh)
    span = camera["distance"] * 0.88 * 2 * np.tan(np.radians(12.5))
    target, azimuth = (
        torch.tensor(camera["target"], dtype=torch.float32),
        torch.tensor([camera["azimuth"]], dtype=torch.float32),
    )
    cameras = turntable(target, span, WIDTH, HEIGHT, azimuth, camera["elevation"])
    with torch.no_grad():
        return rasterize(moved, cameras, background=torch.ones(3)).rgb[0].clamp(0, 1).numpy()


def launch(playwright: Any, *arguments: str) -> Any:
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])


def open_page(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """A page that is ready, and what it has said or asked for since."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT + BAR}, reduced_motion="reduce", **options)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(address)
    page.evaluate("hdx.ready")
    page.evaluate(f"canvas.style.cssText = 'width: {WIDTH}px; height: {HEIGHT}px'")
    return page, heard


def picture(page: Any, change: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """What the canvas shows [H W 3] in [0, 1], and from where."""
    script = "async change => { const camera = await hdx.view(change); return [canvas.toDataURL(), camera]; }"
    url, camera = page.evaluate(script, change or {})
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
    return np.asarray(image, np.float32) / 255, camera


def wait_until(page: Any, condition: str) -> None:
    # the page's policy forbids playwright's own wait, which evaluates strings in it
    body = (
        f"for (let k = 0; k < 300; k++) {{ if ({condition}) return true; await new Promise(r => setTimeout(r, 50)); }}"
    )
    assert page.evaluate(f"async () => {{ {body} }}"), condition


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with library.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    running = launch(playwright, *SOFTWARE_GL)
    yield running
    running.close()


@pytest.fixture(scope="module")
def glb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("viewer") / "avatar.glb"
    write_glb(path, avatar())
    return path


@pytest.fixture(scope="module")
def glb(glb_file: Path) -> bytes:
    return glb_file.read_bytes()


@pytest.fixture(scope="module")
def subject(glb_file: Path) -> SkinnedGaussians:
    return read_glb(glb_file)  # with weights of 8 bits and thinned key frames, as the page gets them


def test_a_mailed_page_shows_what_our_rasteriser_shows(
    browser: Any, subject: SkinnedGaussians, glb: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "my avatar é.html"
    write_html(file, glb, TITLE)
    page, heard = open_page(browser, file.as_uri())
    assert page.title() == TITLE
    assert [clip["name"] for clip in page.evaluate("hdx.clips()")] == ["bend", "turn <b>"]
    bend, turn = (animation.pose for animation in subject.animations)
    shots = []
    for clip, pose, frame, view in (
        ("bend", bend, 0, {"azimuth": 0.0, "elevation": 0.0}),
        ("bend", bend, 6, {"azimuth": 0.0, "elevation": 0.0}),
        ("bend", bend, 4, {"azimuth": 2.2, "elevation": 0.4}),
        ("turn <b>", turn, 1, {"azimuth": -1.0, "elevation": -0.7, "distance": 1.2, "target": [0.1, 0.9, 0.0]}),
    ):
        page.evaluate("([clip, time]) => hdx.seek(clip, time)", [clip, frame / 10])
        shown, camera = picture(page, view)
        expected = reference(subject, pose, frame, camera)
        error = np.abs(shown - expected).mean()
        assert error < 0.6 / 255, (clip, frame, error * 255)
        if frame:  # shapes that stay as they were at rest would be seen
            assert np.abs(reference(subject, pose, frame, camera, carried=False) - expected).mean() > 8 * error
        shots.append(shown)
    assert all(0.02 < (shot.min(2) < 0.9).mean() < 0.98 for shot in shots)  # a person, and a background
    assert np.abs(shots[0] - shots[1]).mean() > 0.01
    assert heard == [
        file.as_uri()
    ]  # the page itself was read; nothing else was asked for, nothing was complained about
    page.close()


def test_play_wrap_and_controls(browser: Any, glb: bytes) -> None:
    with serve(viewer_page(glb, TITLE)) as address:
        page, heard = open_page(browser, address)
    page.evaluate("hdx.seek('turn <b>', 0.49)")
    before = page.evaluate("hdx.frame()")
    page.keyboard.press("Space")
    wait_until(page, f"hdx.frame() > {before} + 4")
    assert page.get_by_role("button", name="Pause").count() == 1
    wait_until(page, "Number(document.getElementById('time').value) < 0.4")  # past the end, from the start again
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play").count() == 1
    # a clip that does not loop stops at its end
    page.get_by_label("Clip").select_option(label="bend")
    wait_until(page, "document.getElementById('play').getAttribute('aria-label') === 'Play'")
    assert float(page.get_by_label("Time").input_value()) == pytest.approx(0.6, abs=1e-3)

    at_rest = picture(page)[1]
    page.mouse.move(150, 180)
    page.mouse.down()
    page.mouse.move(250, 180)
    page.mouse.up()
    page.mouse.wheel(0, 200)
    turned = picture(page)[1]
    assert turned["azimuth"] == pytest.approx(at_rest["azimuth"] - np.pi * 100 / HEIGHT, abs=1e-6)
    assert turned["distance"] > at_rest["distance"]
    page.mouse.move(150, 180)
    page.mouse.down(button="right")
    page.mouse.move(150, 216)  # a tenth of the picture's height
    page.mouse.up(button="right")
    down = 0.1 * 2 * turned["distance"] * np.tan(np.radians(12.5))
    assert picture(page)[1]["target"][1] - turned["target"][1] == pytest.approx(down, rel=1e-3)
    page.get_by_role("button", name="Reset view").click()
    page.evaluate("hdx.seek('bend', 0)")
    assert picture(page)[1]["azimuth"] == 0
    page.get_by_role("combobox", name="Background").select_option(label="Black")
    assert (picture(page)[0][:20, :20] == 0).all()
    # everything that can be used has a name
    unnamed = (
        "[...document.querySelectorAll('button, input, select')].filter(e => !(e.ariaLabel || e.textContent.trim()"
    )
    assert page.evaluate(f"{unnamed} || e.labels?.length)).length") == 0
    assert heard == [address]
    page.close()


def test_a_lost_device_comes_back(browser: Any, glb: bytes, tmp_path: Path) -> None:
    write_html(tmp_path / "a.html", glb, "Ada")
    page, _ = open_page(browser, (tmp_path / "a.html").as_uri())
    page.evaluate("hdx.seek('bend', 0.3)")
    before = picture(page)[0]
    page.evaluate("window.loss = canvas.getContext('webgl2').getExtension('WEBGL_lose_context')")
    page.evaluate("loss.loseContext()")
    assert np.ptp(picture(page)[0]) == 0
    frames = page.evaluate("hdx.frame()")
    page.evaluate("loss.restoreContext()")
    wait_until(page, f"hdx.frame() > {frames}")
    assert (picture(page)[0] == before).all()
    page.close()


def test_points_without_a_skin_stand_still(browser: Any, subject: SkinnedGaussians, glb: bytes, tmp_path: Path) -> None:
    length = struct.unpack("<I", glb[12:16])[0]
    document = json.loads(glb[20 : 20 + length])
    del document["nodes"][0]["skin"], document["skins"], document["animations"]
    document["nodes"][0]["translation"] = [0.5, 0, 0]
    content = json.dumps(document).encode()
    content += b" " * (-len(content) % 4)
    rest = glb[20 + length :]
    header = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(content) + len(rest), len(content), b"JSON")
    write_html(tmp_path / "a.html", header + content + rest, "Still")
    page, heard = open_page(browser, (tmp_path / "a.html").as_uri())
    shown, camera = picture(page, {"azimuth": 0.5})
    still = BodyPose(np.tile(np.eye(3), (1, 3, 1, 1)), np.array([[0.5, 0, 0]]))
    assert np.abs(shown - reference(subject, still, 0, camera)).mean() < 0.6 / 255
    assert not page.get_by_label("Clip").is_visible()
    assert len(heard) == 1
    page.close()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b'"KHR_gaussian_splatting:ROTATION"', b'"KHR_gaussian_splatting:ROTATIOM"', "ROTATION"),
        (b'"VEC4"', b'"VEC9"', "accessor"),
        (b'"byteLength":', b'"byteLength":9', "cut short"),
        (b'"JOINTS_0"', b'"JOINTS_9"', "JOINTS_0"),
    ],
)
def test_a_damaged_avatar_is_named(
    browser: Any, glb: bytes, tmp_path: Path, before: bytes, after: bytes, said: str
) -> None:
    assert before in glb
    damaged = glb.replace(before, after)
    if len(damaged) != len(glb):  # the JSON chunk and the file have grown
        grown = len(damaged) - len(glb)
        damaged = damaged.replace(b'"generator"', b" " * (-grown % 4) + b'"generator"')
        grown = len(damaged) - len(glb)
        size = struct.unpack("<I", glb[12:16])[0] + grown
        damaged = glb[:8] + struct.pack("<II", len(damaged), size) + damaged[16:]
    write_html(tmp_path / "a.html", damaged, "Ada")
    page = browser.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    page.get_by_role("alert").wait_for()
    assert said in page.get_by_role("alert").inner_text()
    assert not page.get_by_role("toolbar").is_visible()
    page.close()


def test_a_browser_without_webgl_is_told(playwright: Any, glb: bytes, tmp_path: Path) -> None:
    write_html(tmp_path / "a.html", glb, "Ada")
    running = launch(playwright, "--disable-3d-apis")
    page = running.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    page.get_by_role("alert").wait_for()
    assert "WebGL 2" in page.get_by_role("alert").inner_text()
    running.close()
