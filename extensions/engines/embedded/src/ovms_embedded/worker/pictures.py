"""From the bytes of images to what pipelines take."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
import openvino
from PIL import Image

from ovms_embedded.worker.pipe import Refused

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""Those of OVMS that anyone sends, and WebP. Others that Pillow knows start other programs or do much more."""
PIXELS = 1 << 27
"""Pixels of all images of a request, 400 MB once they are decoded: some bytes can stand for any number of them."""
TOO_LARGE = f"Image is too large: those of one request may have {PIXELS} pixels in all"
SLENDER = 200
"""How much longer than wide an image may be: pipelines scale the shorter side up, and the other one with it."""


def decode(files: list[bytes]) -> list[Image.Image]:
    """Return the images of a request in red, green and blue; no pixel is decoded before all are known to be few enough.

    :raises Refused: one is no image, or they are too large.
    """
    try:
        opened = [Image.open(io.BytesIO(data), formats=FORMATS) for data in files]
        if sum(each.width * each.height for each in opened) > PIXELS:
            raise Refused(TOO_LARGE)
        for width, height in (each.size for each in opened):
            if max(width, height) > SLENDER * min(width, height):
                text = f"Image of {width}x{height} is too slender: a side may be {SLENDER} times the other at most"
                raise Refused(text)
        return [each.convert("RGB") for each in opened]
    except Refused:
        raise
    except Image.DecompressionBombError as error:  # Pillow looks before we do, and at parts of an image as well
        raise Refused(TOO_LARGE) from error
    except Exception as error:
        text = "Image parsing failed"
        raise Refused(text) from error


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
