"""From the bytes of images to what pipelines take."""

from __future__ import annotations

import base64
import binascii
import io
import math

import numpy as np
import openvino
from PIL import Image, ImageOps

from ovms_embedded.worker.pipe import Refused

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""Those of OVMS that anyone sends, and WebP. Others that Pillow knows start other programs or do much more."""
PIXELS = 1 << 26
"""Pixels of an image, 200 MB once it is decoded: some bytes can stand for any number of them."""
PIXELS_IN_ALL = 1 << 27
"""Pixels of all images of a request."""
SEEN = 1 << 24
"""Pixels of an image that goes on to a model; a larger one is scaled down. No model looks at more, but pipelines take
some 35 bytes for each."""
TOO_LARGE = f"Image is too large: one may have {PIXELS} pixels, and those of one request {PIXELS_IN_ALL} in all"
SLENDER = 200
"""How much longer than wide an image may be: pipelines scale the shorter side up, and the other one with it."""


def decode(files: list[bytes]) -> list[Image.Image]:
    """Return the images of a request in red, green and blue, upright as a viewer shows them.

    No pixel is decoded before all are known to be few enough.

    :raises Refused: one is no image, or they are too large.
    """
    try:
        opened = [Image.open(io.BytesIO(data), formats=FORMATS) for data in files]
        counts = [each.width * each.height for each in opened]
        if sum(counts) > PIXELS_IN_ALL or any(count > PIXELS for count in counts):
            raise Refused(TOO_LARGE)
        for width, height in (each.size for each in opened):
            if max(width, height) > SLENDER * min(width, height):
                text = f"Image of {width}x{height} is too slender: a side may be {SLENDER} times the other at most"
                raise Refused(text)
        return [_upright(each) for each in opened]
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # Pillow looks before we do, and at parts of an image as well
        raise Refused(TOO_LARGE) from error
    except Exception as error:
        text = "Image parsing failed"
        raise Refused(text) from error


def _upright(opened: Image.Image) -> Image.Image:
    with opened:
        picture = opened.convert("RGB")
    if (count := picture.width * picture.height) > SEEN:
        picture = picture.reduce(math.ceil(math.sqrt(count / SEEN)))
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 - Pillow raises what it likes for damaged EXIF data, and the image is there
        return picture


def tensor(picture: Image.Image) -> openvino.Tensor:
    """Return an image as ``[1, height, width, 3]`` bytes."""
    return openvino.Tensor(np.ascontiguousarray(picture, np.uint8)[None])


def tensors(images: list[str | bytes]) -> list[openvino.Tensor]:
    """Return images that are base64 or the bytes of files.

    :raises Refused: as above.
    """
    return [tensor(each) for each in decode([_bytes(image) for image in images])]


def _bytes(image: str | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    packed = "".join(image.split())
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        text = "Invalid base64 string in request"
        raise Refused(text) from error
