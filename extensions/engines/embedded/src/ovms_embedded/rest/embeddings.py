"""``embeddings``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_embedded.rest.errors import Invalid
from ovms_embedded.rest.fields import INT32, Fields
from ovms_embedded.rest.http import Reply, Request, encode

if TYPE_CHECKING:
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker

MANY = 256
"""Texts from which a thread reads them, so that nobody else waits for it."""


async def embeddings(request: Request, _: Servable, worker: Worker) -> Reply:
    """Answer an embeddings request."""
    given = request.fields.get("input")
    many = isinstance(given, list) and len(given) > MANY
    read = asyncio.to_thread(_read_input, request.fields) if many else None
    texts, tokens = await read if read else _read_input(request.fields)
    form = request.fields.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise Invalid("encoding_format should either be base64 or float")
    fields = Fields(request.fields)
    wanted = {
        "texts": texts,
        "tokens": tokens,
        "base64": form == "base64",
        "dimensions": fields.unsigned("dimensions", least=1),
        "max_length": fields.unsigned("max_length", least=1, most=INT32),
    }
    call = worker.call("embed", wanted)
    try:
        result = await call.result()
    finally:
        call.close()
    usage = {"prompt_tokens": result["tokens"], "total_tokens": result["tokens"]}
    return Reply(encode({"object": "list", "data": msgspec.Raw(result["data"]), "usage": usage}))


def _read_input(data: dict[str, Any]) -> tuple[list[str] | None, list[list[int]] | None]:
    given = data.get("input")
    if "input" not in data:
        raise Invalid("input field is required")
    if isinstance(given, str):
        return [given], None
    if not isinstance(given, list):
        raise Invalid(
            "input must be a string, an array of strings, an array of integers or an array of arrays of integers"
        )
    if not given:
        raise Invalid("input array should not be empty")
    if all(isinstance(each, str) for each in given):
        return given, None
    if all(_is_token(each) for each in given):
        return None, [given]
    if all(isinstance(each, list) for each in given):
        if not all(each for each in given):
            raise Invalid("input array should not be empty")
        if all(_is_token(token) for each in given for token in each):
            return None, given
    raise Invalid("input must be homogeneous: strings, integers or arrays of integers")


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
