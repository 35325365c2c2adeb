"""Image files: every kind of photo a user may bring, made here with Pillow."""

import io
import math
import struct
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from hdx_cli.errors import InputRejected, UsageError
from hdx_cli.images import load_mask, load_photo, resize, save_image

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def picture():
    """Smooth colours, so that lossy codecs stay close; every corner has its own colour."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = columns / (WIDTH - 1), rows / (HEIGHT - 1), 0.5 + 0.4 * np.sin(columns / 20)
    return np.round(np.stack(channels, axis=-1) * 255).astype(np.uint8)


def written(folder, image, name, **options):
    path = folder / name
    image.save(path, **options)
    return path


def mean_error(photo, picture):
    return float(np.abs(photo.rgb * 255 - picture).mean())


# 8-bit lossless kinds are exact; the lossy ones at this quality stay within a few grey values on smooth colours.
@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [
        ("a.png", {}, 1e-3),
        ("a.bmp", {}, 1e-3),
        ("a.tif", {}, 1e-3),
        ("a.jpg", {"quality": 95}, 2.0),
        ("a.webp", {"quality": 95}, 3.0),
        ("a.avif", {"quality": 95}, 3.0),
        ("a.heic", {"quality": 95}, 3.0),
        ("a.gif", {}, 6.0),
    ],
)
def test_every_format_decodes_whatever_its_suffix(tmp_path, picture, name, options, limit):
    pillow_heif.register_heif_opener()
    path = written(tmp_path, Image.fromarray(picture), name, **options)
    misnamed = path.rename(tmp_path / "photo.txt")
    photo = load_photo(misnamed)
    assert photo.rgb.shape == (HEIGHT, WIDTH, 3) and photo.rgb.dtype == np.float32
    assert photo.alpha is None and photo.focal_px is None
    assert mean_error(photo, picture) < limit


# What a viewer has to do to the stored array so that it is upright, from the table of the EXIF standard.
TO_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_all_eight_orientations(tmp_path, picture, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, Image.fromarray(picture), name, exif=exif, quality=95)
    photo = load_photo(path)
    expected = TO_UPRIGHT[orientation](picture)
    assert photo.rgb.shape == expected.shape
    assert mean_error(photo, expected) < 3  # lossy codecs, as above; a wrong turn is off by 60


def test_heic_orientation_is_applied_once(tmp_path, picture):
    """Phones turn HEIC by a box of the container and repeat the turn in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = pillow_heif.from_pillow(Image.fromarray(picture))
    stored.info["exif"] = exif.tobytes()
    stored.save(tmp_path / "a.heic", quality=95)
    photo = load_photo(tmp_path / "a.heic")
    assert mean_error(photo, TO_UPRIGHT[6](picture)) < 3


def test_grey_palette_one_bit_and_cmyk(tmp_path, picture):
    rgb = Image.fromarray(picture)
    grey = np.repeat(np.asarray(rgb.convert("L"))[..., None], 3, axis=2)
    assert mean_error(load_photo(written(tmp_path, rgb.convert("L"), "grey.png")), grey) < 1e-3
    palette = rgb.quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    assert mean_error(load_photo(written(tmp_path, palette, "palette.png")), expected) < 1e-3
    one_bit = rgb.convert("1")
    expected = np.repeat(np.asarray(one_bit.convert("L"))[..., None], 3, axis=2)
    assert mean_error(load_photo(written(tmp_path, one_bit, "one.png")), expected) < 1e-3
    cmyk = load_photo(written(tmp_path, rgb.convert("CMYK"), "cmyk.jpg", quality=95))
    assert mean_error(cmyk, picture) < 3


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        photo = load_photo(written(tmp_path, Image.fromarray(values), name))
        np.testing.assert_allclose(photo.rgb[..., 1], values / 65535, atol=1e-6)  # float32 rounding


def test_first_frame_of_an_animation(tmp_path, picture):
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    path = written(tmp_path, first, "a.webp", save_all=True, append_images=[second], lossless=True)
    assert mean_error(load_photo(path), picture) < 1e-3


def test_real_cut_out_is_kept_and_constant_alpha_is_not(tmp_path, picture):
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[20:80, 30:90] = 255
    alpha[20:80, 30] = 100
    cut_out = np.dstack([picture, alpha])
    photo = load_photo(written(tmp_path, Image.fromarray(cut_out), "cut.png"))
    np.testing.assert_allclose(photo.alpha, alpha / 255, atol=1e-6)
    grey = Image.fromarray(cut_out).convert("LA")
    np.testing.assert_allclose(load_photo(written(tmp_path, grey, "la.png")).alpha, alpha / 255, atol=1e-6)
    palette = Image.fromarray(alpha).convert("P")
    palette.info["transparency"] = 0
    assert load_photo(written(tmp_path, palette, "p.png", transparency=0)).alpha is not None
    for constant in (0, 128, 255):
        flat = np.dstack([picture, np.full_like(alpha, constant)])
        assert load_photo(written(tmp_path, Image.fromarray(flat), f"{constant}.png")).alpha is None
    rounded = np.full_like(alpha, 255)
    rounded[:10, :10] = 0
    flat = np.dstack([picture, rounded])
    assert load_photo(written(tmp_path, Image.fromarray(flat), "rounded.png")).alpha is None


def test_hidden_colours_do_not_leak_when_a_cut_out_is_reduced(tmp_path):
    size = 400
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., 1] = 255  # garish green under alpha 0
    pixels[100:300, 100:300] = (200, 0, 0, 255)
    photo = load_photo(written(tmp_path, Image.fromarray(pixels), "a.png"), max_side=150)
    visible = photo.rgb[photo.alpha > 0.02]
    # 8-bit premultiplied colours at alpha 0.02 are known to one in five grey values
    assert visible[:, 1].max() < 0.25


def test_colour_profile_is_converted(tmp_path, picture):
    """A profile whose red and green primaries are exchanged must exchange the channels."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = struct.unpack(">I", srgb[128:132])[0]
    swapped = bytearray(srgb)
    for entry in range(count):
        at = 132 + 12 * entry
        name = bytes(srgb[at : at + 4])
        if name in (b"rXYZ", b"gXYZ"):
            swapped[at : at + 4] = b"gXYZ" if name == b"rXYZ" else b"rXYZ"
    photo = load_photo(written(tmp_path, Image.fromarray(picture), "a.png", icc_profile=bytes(swapped)))
    assert mean_error(photo, picture[..., [1, 0, 2]]) < 1.5  # 8-bit conversion rounds
    photo = load_photo(written(tmp_path, Image.fromarray(picture), "b.png", icc_profile=b"not a profile"))
    assert mean_error(photo, picture) < 1e-3


def with_focal(**tags):
    exif = Image.Exif()
    names = {"film": 0xA405, "mm": 0x920A, "x": 0xA20E, "unit": 0xA210, "width": 0xA002, "height": 0xA003}
    exif.get_ifd(0x8769).update({names[name]: value for name, value in tags.items()})
    return exif


@pytest.mark.parametrize(
    ("tags", "focal_px"),
    [
        ({"film": 36}, 36 * 160 / math.hypot(36, 24)),  # the diagonal of 128 x 96 is 160
        ({"mm": 5.0, "x": 4000.0, "unit": 3, "width": 1280, "height": 960}, 5.0 * 4000 / 10 * 128 / 1280),
        ({"mm": 5.0, "x": 10160.0, "width": 1280, "height": 960}, 5.0 * 10160 / 25.4 * 128 / 1280),
        ({"mm": 5.0}, None),
        ({"film": 36, "width": 1000, "height": 1000}, None),  # cropped since it was taken
        ({"film": 0}, None),
        ({"film": 9999}, None),
    ],
)
def test_focal_length(tmp_path, picture, tags, focal_px):
    path = written(tmp_path, Image.fromarray(picture), "a.jpg", exif=with_focal(**tags))
    assert load_photo(path).focal_px == (None if focal_px is None else pytest.approx(focal_px, rel=1e-6))


def test_focal_length_follows_size_and_turns(tmp_path, picture):
    exif = with_focal(film=36)
    exif[0x0112] = 6
    path = written(tmp_path, Image.fromarray(picture), "a.jpg", exif=exif)
    photo = load_photo(path, max_side=64)
    assert photo.rgb.shape == (64, 48, 3)
    assert photo.focal_px == pytest.approx(36 * 80 / math.hypot(36, 24), rel=1e-6)


def test_large_photos_are_reduced_without_a_shift(tmp_path):
    rows, columns = np.mgrid[0:1200, 0:1600]
    big = np.dstack([columns / 1600, rows / 1200, 0.5 + 0 * rows])
    path = written(tmp_path, Image.fromarray(np.round(big * 255).astype(np.uint8)), "a.jpg", quality=95)
    small = load_photo(path, max_side=200).rgb
    assert small.shape == (150, 200, 3)
    # pixel centres of the small image on the ramp; JPEG at 1/4 scale and rounding stay below two grey values
    np.testing.assert_allclose(small[75, 5:-5, 0], (np.arange(200) + 0.5)[5:-5] / 200, atol=2 / 255)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_refusals_name_the_file_and_the_reason(tmp_path, picture):
    good = io.BytesIO()
    Image.fromarray(picture).save(good, "JPEG")
    cases = {
        "empty.jpg": (b"", "E_DECODE", "empty"),
        "text.jpg": (b"hello, this is no picture\n" * 20, "E_DECODE", "not an image"),
        "cut.jpg": (good.getvalue()[: len(good.getvalue()) // 2], "E_DECODE", "cut off"),
        "bomb.png": (png_header(60_000, 60_000), "E_TOO_LARGE", ""),
        "wide.png": (png_header(60_000, 300), "E_TOO_LARGE", "60000 x 300"),
        "dot.png": (png_header(1, 1), "E_TOO_SMALL", "1 x 1"),
        "strip.png": (png_header(20_000, 100), "E_TOO_SMALL", "1/20"),
    }
    for name, (content, code, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputRejected) as refusal:
            load_photo(tmp_path / name)
        assert refusal.value.code == code, name
        assert name in str(refusal.value) and reason in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputRejected, match="folder"):
        load_photo(tmp_path)
    with pytest.raises(InputRejected, match="no such file") as refusal:
        load_photo(tmp_path / "nowhere.jpg")
    assert refusal.value.code == "E_MISSING" and refusal.value.exit_code == 4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_but_nothing_else(tmp_path, picture, data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, exif=with_focal(film=36))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        photo = load_photo(path)
    except InputRejected as refusal:
        assert "damaged" in str(refusal)
    else:
        assert np.isfinite(photo.rgb).all()


def test_mask_takes_alpha_or_brightness_and_the_photo_size(tmp_path, picture):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 64:] = 255
    grey = written(tmp_path, Image.fromarray(mask), "mask.png")
    loaded = load_mask(grey, (HEIGHT // 2, WIDTH // 2))
    np.testing.assert_allclose(loaded, (mask / 255)[::2, ::2], atol=0.1)  # the Lanczos filter overshoots at the edge
    np.testing.assert_allclose(loaded[:, [0, 20, 40, -1]], (mask / 255)[::2, [0, 40, 80, -1]], atol=1e-6)
    cut_out = written(tmp_path, Image.fromarray(np.dstack([picture, 255 - mask])), "cut.png")
    np.testing.assert_allclose(load_mask(cut_out, (HEIGHT, WIDTH)), 1 - mask / 255, atol=1e-6)
    with pytest.raises(InputRejected, match="proportions"):
        load_mask(grey, (WIDTH, HEIGHT))


def test_save_and_load_again(tmp_path, picture):
    image = picture.astype(np.float32) / 255
    save_image(tmp_path / "a.png", image)
    np.testing.assert_allclose(load_photo(tmp_path / "a.png").rgb, image, atol=1e-6)
    save_image(tmp_path / "a.webp", image)
    assert mean_error(load_photo(tmp_path / "a.webp"), picture) < 3
    alpha = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    alpha[30:60] = 1
    save_image(tmp_path / "b.png", np.concatenate([image, alpha], axis=2))
    np.testing.assert_allclose(load_photo(tmp_path / "b.png").alpha, alpha[..., 0])
    with pytest.raises(UsageError):
        save_image(tmp_path / "a.exr", image)
    with pytest.raises(UsageError):
        save_image(tmp_path / "a.jpg", np.concatenate([image, alpha], axis=2))


def test_resize_keeps_means_and_range():
    random = np.random.default_rng(0).random((40, 60, 3), np.float32)
    smaller = resize(random, 20, 30)
    np.testing.assert_allclose(smaller, random.reshape(20, 2, 30, 2, 3).mean(axis=(1, 3)), atol=1e-6)
    larger = resize(random, 80, 90)
    assert larger.shape == (80, 90, 3) and larger.min() >= random.min() and larger.max() <= random.max()
    assert resize(random[..., 0], 10, 200).shape == (10, 200)
