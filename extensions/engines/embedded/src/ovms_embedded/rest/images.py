"""``images/generations`` and ``images/edits``."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import msgspec.json

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import INT32, UINT32, as_float
from ovms_embedded.rest.http import Reply, Request, encode

if TYPE_CHECKING:
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker

TEXTS = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3")
WHOLE = {
    "width": (1, INT32),
    "height": (1, INT32),
    "n": (1, INT32),
    "num_images_per_prompt": (1, INT32),
    "num_inference_steps": (1, INT32),
    "rng_seed": (0, UINT32),
    "max_sequence_length": (1, INT32),
}
FLOATS = ("strength", "guidance_scale")
OTHERS = ("model", "size", "response_format", "lora_alphas", "image")


async def images(request: Request, servable: Servable, worker: Worker) -> Reply:
    """Answer a request for images."""
    options = servable.graph.options if servable.graph else {}
    edit = request.path.endswith("edits")
    if edit and not request.multipart:
        raise Invalid("images/edits accepts multipart/form-data only")
    payload = _read(request, options)
    payload["adapters"] = _adapters(request, servable, options)
    payload["image"] = payload["mask"] = None
    if edit:
        if "image" not in request.files:
            raise Invalid("image field is missing in request")
        payload["image"] = request.files["image"].data
        if "mask" in request.files:
            payload["mask"] = request.files["mask"].data
    call = worker.call("draw", payload)
    try:
        pictures = await call.result()
    finally:
        call.close()
    return Reply(encode({"data": [{"b64_json": base64.b64encode(each).decode()} for each in pictures or ()]}))


def _read(request: Request, options: dict[str, Any]) -> dict[str, Any]:
    data = request.fields
    for name in data:
        if name not in (*TEXTS, *WHOLE, *FLOATS, *OTHERS):
            raise Invalid(f"Unhandled parameter: {name}")
    for name in request.files:
        if name not in ("image", "mask"):
            raise Invalid(f"Unhandled parameter: {name}")
    payload: dict[str, Any] = {}
    for name in TEXTS:
        if name in data:
            if not isinstance(data[name], str):
                raise Invalid(f"{name} parameter is not a string")
            payload[name] = data[name]
    if "prompt" not in payload:
        raise Invalid("prompt field is missing")
    for name, (least, most) in WHOLE.items():
        if name in data:
            payload[name] = _whole(name, data[name], least, most, text=request.multipart)
    for name in FLOATS:
        if name in data:
            payload[name] = _float(name, data[name], text=request.multipart)
    if not 0 <= payload.get("strength", 0) <= 1:
        raise Invalid("strength must be between 0 and 1")
    if data.get("response_format", "b64_json") != "b64_json":
        raise Invalid("Unsupported response_format. Only b64_json is supported.")
    payload["size"] = _size(data.get("size"), payload)
    _numbers(payload, options)
    return payload


def _numbers(payload: dict[str, Any], options: dict[str, Any]) -> None:
    if "n" in payload and "num_images_per_prompt" in payload:
        raise Invalid("n and num_images_per_prompt cannot be both set")
    if "n" in payload:
        payload["num_images_per_prompt"] = payload.pop("n")
    if payload.get("num_images_per_prompt", 1) > options["max_num_images_per_prompt"]:
        raise Invalid(f"num_images_per_prompt is greater than maximum allowed: {options['max_num_images_per_prompt']}")
    if payload.get("num_inference_steps", 1) > options["max_num_inference_steps"]:
        raise Invalid(f"num_inference_steps is greater than maximum allowed: {options['max_num_inference_steps']}")


def _whole(name: str, value: object, least: int, most: int, *, text: bool) -> int:
    if text and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(f"{name} parameter is not an integer")
    if not least <= value <= most:
        raise Invalid(f"{name} parameter must be between {least} and {most}")
    return value


def _float(name: str, value: object, *, text: bool) -> float:
    if text and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,2})?", value):
        value = float(value)
    if not isinstance(value, float):
        raise Invalid(f"{name} parameter is not a float; write it with a decimal point")
    return value


def _size(value: object, payload: dict[str, Any]) -> list[int] | None:
    width, height = payload.pop("width", None), payload.pop("height", None)
    if value is None:
        if (width is None) != (height is None):
            raise Invalid("width and height must be set together")
        return None if width is None else [width, height]
    if width is not None or height is not None:
        raise Invalid("size cannot be used together with width and height")
    if value == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value) if isinstance(value, str) else None
    if match is None or not int(match[1]) or not int(match[2]):
        raise Invalid("size field is malformed, expected WxH or auto")
    return [int(match[1]), int(match[2])]


def _adapters(request: Request, servable: Servable, options: dict[str, Any]) -> dict[str, float]:
    """Return the adapters to apply with their strengths: those of the alias in ``model``, then ``lora_alphas``."""
    adapters = {each["alias"]: each for each in options["lora_adapters"]}
    composites = {each["alias"]: each["components"] for each in options["composite_lora_adapters"]}
    chosen: dict[str, float] = {}
    if alone := adapters.get(request.model):
        chosen = {alone["alias"]: alone["alpha"]}
    elif parts := composites.get(request.model):
        chosen = {each["adapter_alias"]: each["alpha"] for each in parts}
    given = request.fields.get("lora_alphas")
    if given is None:
        return chosen
    if request.multipart and isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, RecursionError):
            given = None
    if not isinstance(given, dict):
        raise Invalid("lora_alphas is not an object")
    if not adapters or any(each["mode"] != "DYNAMIC" for each in adapters.values()):
        raise Invalid("lora_alphas is only supported with DYNAMIC adapters")
    for alias, alpha in given.items():
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise Invalid(f"lora_alphas value of {alias} is not a number")
        if alias not in (adapters if request.model == servable.name else chosen):
            raise Invalid(f"lora_alphas alias {alias} does not belong to the requested model")
        chosen[alias] = as_float(alpha, f"lora_alphas value of {alias}")
    return chosen
