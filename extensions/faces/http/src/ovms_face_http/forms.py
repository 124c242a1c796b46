"""Multipart forms as fields and files. A form knows texts only, so what OpenAI's API has as numbers is made that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_kernel.api.faces import BadRequest, Upload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

MOST_FILES = 32
MOST_FIELDS = 256
FIELD_BYTES = 4 << 20
"""Bytes of a field that is no file."""
WHOLE = ("n", "seed", "rng_seed", "num_inference_steps", "width", "height", "max_sequence_length")
NUMBERS = ("temperature", "strength", "guidance_scale", "speed")
LISTS = ("timestamp_granularities", "include")
WORDS = {"true": True, "false": False, "1": True, "0": False}


async def read_form(
    content_type: bytes, pieces: AsyncGenerator[bytes, None]
) -> tuple[dict[str, Any], dict[str, Upload]]:
    """Return the fields and the files of a multipart form.

    A field that comes twice, or is written with ``[]``, is a list. Of a file that comes twice, such as ``image[]``, the
    further ones are ``image_2`` and so on.

    :raises BadRequest: it is not one, or has too many parts.
    """
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        # Uploads may be private, so none of them is written to a disk; the body's limit bounds them.
        spool_max_size = 1 << 40

    parser = InMemory(
        Headers(raw=[(b"content-type", content_type)]),
        pieces,
        max_files=MOST_FILES,
        max_fields=MOST_FIELDS,
        max_part_size=FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        cause = getattr(error, "message", "") or "it has no boundary, or another encoding"
        raise BadRequest(f"The form cannot be read ({cause.rstrip('.')}); send multipart/form-data.") from error
    fields: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    try:
        for key, value in form.multi_items():
            name, listed = key.removesuffix("[]"), key.endswith("[]")
            if isinstance(value, UploadFile):
                data = await value.read()
                files[_free(name, files)] = Upload(value.filename or name, data, value.content_type or "")
            elif name in fields or listed or name in LISTS:
                known = fields.get(name, [])
                fields[name] = [*(known if isinstance(known, list) else [known]), value]
            else:
                fields[name] = value
    finally:
        await form.close()
    return {name: _typed(name, value) for name, value in fields.items()}, files


def _free(name: str, files: dict[str, Upload]) -> str:
    number, free = 1, name
    while free in files:
        number += 1
        free = f"{name}_{number}"
    return free


def _typed(name: str, value: Any) -> Any:  # noqa: ANN401 - a text, or what OpenAI's API has in its place
    if not isinstance(value, str):
        return value
    if name == "stream":
        if value.lower() not in WORDS:
            raise BadRequest("The field stream must be true or false.")
        return WORDS[value.lower()]
    kind: Callable[[str], Any] | None = int if name in WHOLE else float if name in NUMBERS else None
    if kind is None:
        return value
    try:
        return kind(value)
    except ValueError:
        raise BadRequest(f"The field {name} must be a number, not {value[:40]!r}.") from None
