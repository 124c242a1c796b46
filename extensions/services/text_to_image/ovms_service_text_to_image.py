"""The text-to-image service: OpenAI's image generations and edits."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.api.services import (
    Answer,
    BadRequest,
    EngineFailed,
    ServiceDefinition,
    Upload,
    check,
    decode_answer,
    encode,
    host_names,
    need,
    present,
    read_media,
    served_model,
)

if TYPE_CHECKING:
    from ovms_kernel.api.services import Call, Engine

TEXTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "size")
FLOATS = ("strength", "guidance_scale")
SEEDS = ("seed", "rng_seed")
WHOLE = (*SEEDS, "n", "num_images_per_prompt", "num_inference_steps", "width", "height", "max_sequence_length")
OTHER = ("model", "lora_alphas", "response_format", "output_format", "image", "mask")
WITHOUT_EFFECT = ("user", "quality", "style", "moderation", "background", "input_fidelity", "output_compression")
"""Fields of OpenAI's own models, which clients send with their defaults."""
LARGEST = 4096
"""Pixels of a side."""
MOST = 10
"""Images of one request."""
SEED_LIMIT = 1 << 32
"""The engine's seeds are whole numbers below this."""


DEFAULT_MODEL = "OpenVINO/stable-diffusion-v1-5-fp16-ov"


class TextToImageSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = DEFAULT_MODEL
    """The model of requests that name none."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that images may be fetched from."""


class TextToImage:
    """Paints images of a ``prompt``, or changes the ``image`` that is given with it."""

    settings_type = TextToImageSettings

    def __init__(self, settings: TextToImageSettings) -> None:
        self.definition = ServiceDefinition(
            name="text-to-image",
            model_type="image_generation",
            endpoint="/v3/images/generations",
            paths=("/v1/images/generations", "/v1/images/edits"),
            probes=('{"prompt":"a red ball on green grass","num_inference_steps":1,"rng_seed":1}',),
            probe_answers="picture",
            default_model=settings.default_model,
            support_models=(DEFAULT_MODEL, "OpenVINO/stable-diffusion-v1-5-int8-ov"),
            extras={
                "aog": {
                    "config_ref": "openvino:text-to-image",
                    "config_ref_full": "aog:text-to-image",
                    "timeout": -1,
                }
            },
        )
        self._hosts = host_names(settings.allowed_hosts)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return ``created`` and ``data`` with an image each, PNG, as ``b64_json`` or as a data URI in ``url``."""
        fields = present(call)
        source = fields.pop("image_type", None)
        wanted = prepare(numbers_of_form(fields) if call.files else fields)
        as_url = wanted.pop("response_format", "b64_json") == "url"
        images = await self._images(call, wanted, source)
        async with served_model(self.definition, call, engine) as model:
            wanted["model"] = model
            if images:
                answer = await engine.upload("/v3/images/edits", form(wanted), images)
            else:
                answer = await engine.post(self.definition.endpoint, encode(wanted))
        painted = {"created": int(time.time())} | decode_answer(answer.body) | {"model": model}
        return Answer(encode(with_urls(painted) if as_url else painted), model=model)

    async def _images(self, call: Call, wanted: dict[str, Any], source: object) -> dict[str, Upload]:
        """Take the image and the mask out of a request."""
        uploads = [name for name in call.files if name.startswith("image")]
        if len(uploads) > 1 or isinstance(wanted.get("image"), list):
            raise BadRequest("The model changes one image at a time; send one request for each.")
        found = {name: call.files[upload].data for name, upload in zip(("image",), uploads, strict=False)}
        if "mask" in call.files:
            found["mask"] = call.files["mask"].data
        for name, said in (("image", source), ("mask", None)):
            if (value := wanted.pop(name, None)) is not None and name not in found:
                kind = said if isinstance(said, str) else None
                found[name] = await read_media(name, value, source=kind, hosts=self._hosts, local=call.local_files)
        if "mask" in found and "image" not in found:
            raise BadRequest("A mask needs the image that it belongs to; send both.")
        return {name: Upload(f"{name}.png", data) for name, data in found.items()}


def numbers_of_form(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields of a form, which are texts, with numbers where numbers are meant; what is none stays as it is."""
    fields = fields.copy()
    for name in (*WHOLE, *FLOATS):
        if isinstance(text := fields.get(name), str) and re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", text):
            fields[name] = float(text) if "." in text else int(text)
    return fields


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's fields of the caller's; the engine refuses fields that it does not know."""
    if fields.get("stream"):
        raise BadRequest("Images are not streamed; leave stream out.")
    if fields.get("background") == "transparent":
        raise BadRequest("The model paints no transparent background; leave background out.")
    fields = {
        name: value for name, value in fields.items() if name not in (*WITHOUT_EFFECT, "stream", "partial_images")
    }
    known = (*TEXTS, *FLOATS, *WHOLE, *OTHER)
    if unknown := sorted(fields.keys() - set(known)):
        raise BadRequest(f"text-to-image has no field {unknown[0]}; it takes {', '.join(known)} and image_type.")
    need(fields, "prompt", str, "a text that is not empty")
    for name in TEXTS:
        check(fields, name, str, "a text")
    if fields.get("response_format") not in (None, "b64_json", "url"):
        raise BadRequest(f"The field response_format must be b64_json or url, not {fields['response_format']}.")
    if fields.pop("output_format", "png") != "png":
        raise BadRequest("Images are PNG; leave output_format out.")
    _check_numbers(fields)
    if "size" in fields:
        fields["size"] = size_of(fields["size"])
    if max(fields.get("width", 1), fields.get("height", 1)) > LARGEST:
        raise BadRequest(f"An image may have at most {LARGEST} pixels a side; ask for a smaller one.")
    if fields.get("n", 1) > MOST:
        raise BadRequest(f"At most {MOST} images are painted at once, not {fields['n']}.")
    return fields


def _check_numbers(fields: dict[str, Any]) -> None:
    """Write the numbers of a request as the engine takes them, in place."""
    for name in WHOLE:
        if (value := check(fields, name, (int, float), "a whole number")) is not None:
            least = -1 if name in SEEDS else 1
            if value != int(value) or value < least:
                raise BadRequest(f"The field {name} must be a whole number from {least} up, not {value}.")
            fields[name] = int(value)
    for name in SEEDS:
        if (seed := fields.pop(name, -1)) >= 0:  # -1 stands for a random one, and others' seeds have 64 bits
            fields["rng_seed"] = seed % SEED_LIMIT
    for name in FLOATS:
        if (value := check(fields, name, (int, float), "a number")) is not None:
            try:
                fields[name] = float(value)  # the engine refuses 7 for 7.0
            except OverflowError:
                raise BadRequest(f"The field {name} holds too large a number.") from None


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


def with_urls(painted: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with each image as a data URI, which is a URL that needs no server.

    :raises EngineFailed: there is no image.
    """
    try:
        data = [{"url": f"data:image/png;base64,{each['b64_json']}"} for each in painted["data"]]
    except (KeyError, TypeError) as error:
        raise EngineFailed("The engine's answer holds no image.") from error
    return painted | {"data": data}
