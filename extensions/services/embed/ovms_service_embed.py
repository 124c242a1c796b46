"""The embed service: texts to vectors, as OpenAI's embeddings."""

from __future__ import annotations

import base64
import math
from array import array
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from ovms_kernel.api.services import (
    BadRequest,
    EngineFailed,
    Route,
    ServiceDefinition,
    check,
    decode_answer,
    encode,
    forward,
    need,
    with_model,
)

if TYPE_CHECKING:
    from ovms_kernel.api.services import Answer, Call, Engine


class EmbedSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    default_model: str = "OpenVINO/Qwen3-Embedding-0.6B-int8-ov"
    """The model of requests that name none."""


class Embed:
    """Makes a vector of each text, or list of tokens, in ``input``."""

    settings_type = EmbedSettings

    def __init__(self, settings: EmbedSettings) -> None:
        self.definition = ServiceDefinition(
            name="embed",
            model_type="embeddings",
            endpoint="/v3/embeddings",
            paths=("/v1/embeddings",),
            default_model=settings.default_model,
            support_models=("OpenVINO/Qwen3-Embedding-0.6B-int8-ov",),
            probes=('{"input":["A cat sleeps on the sofa.","The price of oil rose again."]}',),
            probe_answers="vectors",
            extras={"aog": {"config_ref": "openvino:embed", "config_ref_full": "aog:embed"}},
        )
        self._route = Route(self.definition, prepare, adds=with_model)

    async def invoke(self, call: Call, engine: Engine) -> Answer:
        """Return the vectors."""
        answer = await forward(self._route, call, engine)
        if not (dimensions := call.fields.get("dimensions")):
            return answer
        return replace(answer, body=encode(cut(decode_answer(answer.body), dimensions)))


def prepare(fields: dict[str, Any]) -> dict[str, Any]:
    """Check that there is something to embed."""
    need(fields, "input", (str, list), "a text, a list of texts, or lists of tokens, and not empty")
    if fields.get("encoding_format") not in (None, "float", "base64"):
        raise BadRequest("The field encoding_format must be float or base64.")
    if (dimensions := check(fields, "dimensions", int, "a whole number")) is None:
        return fields
    if dimensions < 1:
        raise BadRequest("The field dimensions must be at least 1.")
    return {name: value for name, value in fields.items() if name != "dimensions"}


def cut(answer: dict[str, Any], dimensions: int) -> dict[str, Any]:
    """Return an answer whose vectors have that many dimensions and a length of 1, as OpenAI shortens them.

    :raises BadRequest: the model's vectors have fewer.
    :raises EngineFailed: the answer has no vectors.
    """
    try:
        return answer | {"data": [each | {"embedding": _cut(each["embedding"], dimensions)} for each in answer["data"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFailed("The engine's answer holds no vectors.") from error


def _cut(vector: str | list[float], dimensions: int) -> str | list[float]:
    values = array("f", base64.b64decode(vector)) if isinstance(vector, str) else array("d", vector)
    if len(values) < dimensions:
        raise BadRequest(f"The vectors of this model have {len(values)} dimensions; ask for at most as many.")
    length = math.hypot(*values[:dimensions]) or 1.0
    shorter = array(values.typecode, (value / length for value in values[:dimensions]))
    return base64.b64encode(shorter.tobytes()).decode() if isinstance(vector, str) else shorter.tolist()
