"""The text-to-image service: images from texts, and from other images."""

from __future__ import annotations

import base64
import re
import time
from typing import TYPE_CHECKING, Any

import anyio

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    EngineFailed,
    ServiceDefinition,
    Upload,
    allowed_hosts,
    check,
    decode_answer,
    encode,
    need,
    output_folder,
    present,
    read_media,
    served_model,
    time_left,
    write_output,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovms_kernel.api.services import Call, Engine

TEXTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "size")
FLOATS = ("strength", "guidance_scale")
SEEDS = ("seed", "rng_seed")
WHOLE = (*SEEDS, "n", "num_images_per_prompt", "num_inference_steps", "width", "height", "max_sequence_length")
OTHER = ("model", "lora_alphas", "response_format", "image", "mask")
LARGEST = 4096
"""Pixels of a side."""


class TextToImage:
    """Paints images of a ``prompt``, or changes the ``image`` that is given with it.

    :param section: ``default_model``; ``output_dir`` for ``"response_format": "path"``; ``allowed_hosts`` that an
        image may be fetched from.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        default = "OpenVINO/stable-diffusion-v1-5-fp16-ov"
        self.definition = ServiceDefinition(
            name="text-to-image",
            model_type="image_generation",
            endpoint="/v3/images/generations",
            paths=("/v1/images/generations", "/v1/images/edits"),
            default_model=section.get("default_model", default),
            support_models=(default, "OpenVINO/stable-diffusion-v1-5-int8-ov"),
            extras={
                "aog": {
                    "config_ref": "openvino:text-to-image",
                    "config_ref_full": "aog:text-to-image",
                    "timeout": -1,
                }
            },
        )
        self._section = section
        self._hosts = allowed_hosts(section)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return ``created`` and ``data`` with an image each."""
        began = time.monotonic()
        fields = present(call)
        sources = {"image": fields.pop("image_type", None)}
        wanted = prepare(fields)
        images: dict[str, bytes] = {
            name: await read_media(name, wanted.pop(name), source=sources.get(name), hosts=self._hosts)
            for name in ("image", "mask")
            if name in wanted
        }
        if "mask" in images and "image" not in images:
            raise BadRequest("A mask needs the image that it belongs to.")
        as_files = wanted.pop("response_format", "b64_json") != "b64_json"
        folder = output_folder(self._section) if as_files else None
        async with served_model(self.definition, call, engine) as model:
            wanted["model"] = model
            if images:
                files = {name: Upload(f"{name}.png", data) for name, data in images.items()}
                answer = await engine.upload("/v3/images/edits", form(wanted), files, timeout=time_left(call, began))
            else:
                answer = await engine.post(self.definition.endpoint, encode(wanted), timeout=time_left(call, began))
        painted = decode_answer(answer.body)
        if folder:
            await anyio.to_thread.run_sync(save, painted, folder)
        return Answer(encode({"created": int(time.time())} | painted | {"model": model}))


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's fields of the caller's; the engine refuses fields that it does not know."""
    fields = fields.copy()
    if fields.get("stream") is False:
        del fields["stream"]
    known = (*TEXTS, *FLOATS, *WHOLE, *OTHER)
    if unknown := sorted(fields.keys() - set(known)):
        raise BadRequest(f"text-to-image has no field {unknown[0]}; it takes {', '.join(known)} and image_type.")
    need(fields, "prompt", str, "a text that is not empty")
    for name in TEXTS:
        check(fields, name, str, "a text")
    for name in WHOLE:
        value = check(fields, name, (int, float), "a whole number")
        if value is not None:
            least = 0 if name in SEEDS else 1
            if value != int(value) or value < least:
                raise BadRequest(f"The field {name} must be a whole number from {least} up, not {value}.")
            fields[name] = int(value)
    if "seed" in fields:
        fields["rng_seed"] = fields.pop("seed")
    for name in FLOATS:
        if (value := check(fields, name, (int, float), "a number")) is not None:
            try:
                fields[name] = float(value)  # the engine refuses 7 for 7.0
            except OverflowError:
                raise BadRequest(f"The field {name} holds too large a number.") from None
    if "size" in fields:
        fields["size"] = size_of(fields["size"])
    if max(fields.get("width", 1), fields.get("height", 1)) > LARGEST:
        raise BadRequest(f"An image may have at most {LARGEST} pixels a side.")
    if fields.get("n", 1) > 10:
        raise BadRequest(f"At most 10 images are painted at once, not {fields['n']}.")
    if fields.get("response_format") not in (None, "b64_json", "path", "url"):
        raise BadRequest(f"The field response_format must be b64_json or path, not {fields['response_format']}.")
    return fields


def size_of(text: str) -> str:
    """Return ``512x512`` for ``512*512`` and its like."""
    match = re.fullmatch(r"(\d{1,6})\s*[x*X×]\s*(\d{1,6})", text.strip())
    if text == "auto":
        return text
    if not match or not all(0 < int(side) <= LARGEST for side in match.groups()):
        raise BadRequest(f"The field size must be like 512x512, with at most {LARGEST} pixels a side, not {text!r}.")
    return f"{int(match[1])}x{int(match[2])}"


def form(fields: dict[str, Any]) -> dict[str, str | list[str]]:
    """Return the fields as texts, as multipart wants them."""
    return {name: value if isinstance(value, str) else encode(value).decode() for name, value in fields.items()}


def save(painted: dict[str, Any], folder: Path) -> None:
    """Write the images to files and add each one's path as ``url``."""
    for each in painted.get("data", []):
        try:
            data = base64.b64decode(each["b64_json"], validate=True)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineFailed("The engine's answer holds no image.") from error
        each["url"] = str(write_output(folder, "image", ".png", data))
