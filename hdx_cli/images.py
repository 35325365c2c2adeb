"""Image files to arrays and back: every format and oddity of users' photos is dealt with here and nowhere else.

Arrays are [H W 3] float32 in [0, 1], sRGB-encoded; alpha is straight and kept apart.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import InputRejected, UsageError
from .observation import Photo

# Decoders that are let near a stranger's file; Pillow has others that start programs (EPS) or are seldom exercised.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP")
READABLE = "JPEG, PNG, WebP, HEIC, AVIF, TIFF, GIF and BMP can be read"
# What is refused from the header alone. A JPEG is decoded at a fraction of its size; what cannot be, takes up to
# 13 bytes a pixel while alpha and colours are converted: 950 MB.
MOST_PIXELS, MOST_DECODED_PIXELS = 150_000_000, 75_000_000
LONGEST_SIDE_PX = 30_000
# The pose models look at 256 px; below this shorter side there is no person to see.
SHORTEST_SIDE_PX = 64
LONGEST_SHAPE = 20
# Alpha that hides less than this share of the photo (rounded corners, a watermark) is no cut-out.
CUT_OUT_SHARE = 0.05
# Diagonal of the 36 x 24 mm film frame, to which "35 mm equivalent" focal lengths refer.
FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)

_EXIF_IFD = 0x8769
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x920A, 0xA405
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_FOCAL_PLANE_X_RESOLUTION, _FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


def load_photo(path: str | Path, max_side: int = 2048) -> Photo:
    """Decode a photo upright, in sRGB and at working size.

    JPEG, PNG, WebP, HEIC, AVIF, TIFF, GIF and BMP by content, whatever the suffix says: 8 and 16 bit, grey, palette,
    CMYK, with or without alpha; of an animation the first frame. All eight EXIF orientations are applied, an embedded
    colour profile is converted to sRGB, and alpha is kept where it is a real cut-out. The focal length comes from EXIF
    and follows the size.

    Args:
        path: the file.
        max_side: photos with a longer side are reduced to it, px.

    Raises:
        InputRejected: with one line that names file and reason; codes ``E_MISSING``, ``E_UNREADABLE``, ``E_DECODE``,
            ``E_TOO_SMALL``, ``E_TOO_LARGE``. Sizes are judged from the header, before anything is decoded.
    """
    path = Path(path)
    image, focal_px = _decode(path, max_side)
    scale = min(1.0, max_side / max(image.size))
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)  # Pillow premultiplies alpha while it resizes
    if image.mode == "F":
        grey = np.clip(np.nan_to_num(np.asarray(image)), 0, 1)
        return Photo(np.repeat(grey[..., None], 3, axis=2), None, _scaled(focal_px, scale))
    pixels = np.asarray(image, np.float32) / np.float32(255)
    alpha = pixels[..., 3] if image.mode == "RGBA" and _is_cut_out(pixels[..., 3]) else None
    if alpha is not None:
        pixels[..., :3][alpha == 0] = 1.0  # files keep anything, often black, where nothing is to be seen
    return Photo(
        np.ascontiguousarray(pixels[..., :3]),
        None if alpha is None else np.ascontiguousarray(alpha),
        _scaled(focal_px, scale),
    )


def load_mask(path: str | Path, shape: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    """A user's matte [H W] in [0, 1] at the photo's working size: the file's alpha if it has any, else its brightness.

    Args:
        path: any image that ``load_photo`` reads.
        shape: height and width of the photo in px.

    Raises:
        InputRejected: as ``load_photo``, or ``E_MASK`` where its proportions are not the photo's.
    """
    photo = load_photo(path, max_side=max(shape))
    mask = photo.alpha if photo.alpha is not None else photo.rgb.mean(axis=2)
    # Half a per cent allows for the rounding of sizes; more would shift the matte visibly against the photo.
    if abs(mask.shape[1] * shape[0] / (mask.shape[0] * shape[1]) - 1) > 0.005 + 1 / min(*mask.shape, *shape):
        sizes = f"{mask.shape[1]} x {mask.shape[0]} against {shape[1]} x {shape[0]}"
        raise InputRejected(f"{path}: the mask does not have the proportions of the photo ({sizes})", code="E_MASK")
    return resize(mask, *shape)


def save_image(
    path: str | Path, image: Float[np.ndarray, "H W C"] | Float[np.ndarray, "H W"], quality: int = 92
) -> None:
    """Write grey [H W], RGB [H W 3] or straight RGBA [H W 4] in [0, 1] as PNG, JPEG or WebP, by suffix.

    Raises:
        UsageError: a suffix of another kind, or alpha in a JPEG.
    """
    path = Path(path)
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path}: images are written as .png, .jpg or .webp")
    if kind == "JPEG" and image.ndim == 3 and image.shape[2] == 4:
        raise UsageError(f"{path}: JPEG has no alpha", hint=f"write {path.with_suffix('.png').name} instead")
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    options = {
        "PNG": {"compress_level": 4},
        "JPEG": {"quality": quality, "subsampling": 0},
        "WEBP": {"quality": quality},
    }
    Image.fromarray(pixels).save(path, kind, **options[kind])


def resize(image: Float[np.ndarray, "H W *C"], height: int, width: int) -> Float32[np.ndarray, "height width *C"]:
    """Resample to a size in px: area average where it shrinks, cubic within the range of its values where it grows."""
    if image.shape[:2] == (height, width):
        return np.asarray(image, np.float32)
    image = np.ascontiguousarray(image, np.float32)
    rows, columns = image.shape[:2]
    smaller = min(height, rows), min(width, columns)
    if smaller != (rows, columns):
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        low, high = image.min(), image.max()
        image = np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), low, high)
    return image


def _decode(path: Path, max_side: int) -> tuple[Image.Image, float | None]:
    """An upright image in mode RGB, RGBA or F (grey in [0, 1]) and its focal length in px where EXIF tells it."""
    try:
        if path.is_dir():
            raise InputRejected(f"{path}: a folder, not a photo", code="E_UNREADABLE")
        if path.stat().st_size == 0:
            raise InputRejected(f"{path}: the file is empty", code="E_DECODE")
        return _decode_checked(path, max_side)
    except FileNotFoundError:
        raise InputRejected(f"{path}: no such file", code="E_MISSING") from None
    except PermissionError:
        raise InputRejected(f"{path}: no permission to read it", code="E_UNREADABLE") from None
    except UnidentifiedImageError:
        raise InputRejected(f"{path}: not an image, or of an unknown kind ({READABLE})", code="E_DECODE") from None
    except Image.DecompressionBombError:
        raise InputRejected(f"{path}: more than {MOST_PIXELS // 10**6} megapixels", code="E_TOO_LARGE") from None
    except InputRejected:
        raise
    except MemoryError:
        raise InputRejected(f"{path}: too large for the memory of this machine", code="E_TOO_LARGE") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason)
        raise InputRejected(f"{path}: damaged or cut off ({reason})", code="E_DECODE") from error


def _decode_checked(path: Path, max_side: int) -> tuple[Image.Image, float | None]:
    import pillow_heif

    Image.init()  # knows the formats by name
    pillow_heif.register_heif_opener()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata and on sizes that are judged here
        with Image.open(path, formats=FORMATS) as image:
            _check_size(path, image.size)
            full_size = image.size
            image.draft("RGB", (2 * max_side, 2 * max_side))  # JPEG alone: decodes at 1/2, 1/4 or 1/8 in less memory
            if image.width * image.height > MOST_DECODED_PIXELS:
                limit = f"at most {MOST_DECODED_PIXELS // 10**6} megapixels in anything but a JPEG"
                size = f"{full_size[0]} x {full_size[1]} px"
                raise InputRejected(f"{path}: {size} is too large ({limit})", code="E_TOO_LARGE")
            image.load()
            focal_px = _focal_px(image.getexif(), full_size)
            focal_px = _scaled(focal_px, max(image.size) / max(full_size))
            profile = image.info.get("icc_profile")
            ImageOps.exif_transpose(image, in_place=True)
            return _to_srgb(image, profile), focal_px


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE_PX:
        limit = f"at most {MOST_PIXELS // 10**6} megapixels and {LONGEST_SIDE_PX} px a side"
        raise InputRejected(f"{path}: {width} x {height} px is too large ({limit})", code="E_TOO_LARGE")
    if min(size) < max(SHORTEST_SIDE_PX, max(size) / LONGEST_SHAPE):
        limit = f"at least {SHORTEST_SIDE_PX} px and 1/{LONGEST_SHAPE} of the longer side"
        raise InputRejected(f"{path}: {width} x {height} px is too small ({limit})", code="E_TOO_SMALL")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Any of Pillow's modes as RGB or RGBA in sRGB, or as F where grey has more than 8 bits."""
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32)
        return Image.fromarray(values / np.float32(65535))
    if image.mode == "F":
        return image
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _from_profile(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours converted from an ICC profile to sRGB; a profile that is damaged or of other channels is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _is_cut_out(alpha: Float32[np.ndarray, "H W"]) -> bool:
    """Whether alpha separates something from a background rather than being constant or rounding corners."""
    hidden = float((alpha < 0.5).mean())
    return CUT_OUT_SHARE < hidden < 1 - 0.1 * CUT_OUT_SHARE


def _focal_px(exif: Image.Exif, size: tuple[int, int]) -> float | None:
    """Focal length in px of an image of ``size``, from the 35 mm equivalent or from the sensor's resolution.

    None where EXIF says nothing, or nothing likely: recorded proportions that are not the image's mean a crop, after
    which the field of view is unknown.
    """
    tags = exif.get_ifd(_EXIF_IFD)
    width, height = _number(tags, _PIXEL_WIDTH), _number(tags, _PIXEL_HEIGHT)
    if width and height:
        recorded, actual = max(width, height) / min(width, height), max(size) / min(size)
        if abs(recorded / actual - 1) > 0.02:
            return None
    film_mm = _number(tags, _FOCAL_LENGTH_35MM)
    focal_mm, per_unit = _number(tags, _FOCAL_LENGTH), _number(tags, _FOCAL_PLANE_X_RESOLUTION)
    if film_mm:
        focal_px = film_mm * math.hypot(*size) / FILM_DIAGONAL_MM
    elif focal_mm and per_unit and width and height:
        mm_per_unit = _MM_PER_UNIT.get(int(_number(tags, _FOCAL_PLANE_UNIT) or 2), 25.4)
        focal_px = focal_mm * per_unit / mm_per_unit * max(size) / max(width, height)
    else:
        return None
    # 11 mm to 500 mm on film; beyond that the tag is more likely wrong than the lens so extreme.
    return focal_px if 0.3 < focal_px / max(size) < 14 else None


def _number(tags: dict, tag: int) -> float | None:
    """A positive finite number of an EXIF tag, or None."""
    try:
        value = float(tags[tag])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _scaled(focal_px: float | None, scale: float) -> float | None:
    return None if focal_px is None else focal_px * scale
