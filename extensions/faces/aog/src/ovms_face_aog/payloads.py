"""The JSON inside the bytes of ProviderService, as AOG's Go types read and write it (docs/protocols/aog.md)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from ovms_kernel.api.faces import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ovms_kernel.api.faces import EngineStatus, Host, LocalModel, Progress, Service, Settings


def read_request(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a request; nothing at all counts as an empty one.

    :raises BadRequest: there is something else in it.
    """
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request is not valid JSON ({error}); send one JSON object.") from error
    if not isinstance(value, dict):
        raise BadRequest(f"The request must be one JSON object, not {type(value).__name__}.")
    return value


def read_model(raw: bytes) -> str:
    """Return the field ``model`` of a request.

    :raises BadRequest: it is missing or not a text.
    """
    name = read_request(raw).get("model")
    if not isinstance(name, str) or not name:
        raise BadRequest('The request names no model; send {"model": "<owner>/<name>"}.')
    return name


def read_models(raw: bytes) -> list[str]:
    """Return the field ``models`` of a request, a list of names; ``model`` is understood too.

    :raises BadRequest: it is missing or something else.
    """
    request = read_request(raw)
    names = request.get("models") or [request.get("model")]
    if not isinstance(names, list) or not all(isinstance(each, str) and each for each in names):
        raise BadRequest('The request names no models; send {"models": ["<owner>/<name>"]}.')
    return names


def read_pull(raw: bytes, services: Mapping[str, Service]) -> tuple[str, str]:
    """Return model and model type of a pull; AOG puts a service's name into ``model_type``.

    :raises BadRequest: a field is missing or of the wrong type.
    """
    model_type = read_request(raw).get("model_type") or ""
    if not isinstance(model_type, str):
        raise BadRequest("The field model_type must be a text.")
    if service := services.get(model_type):
        model_type = service.definition.model_type
    return read_model(raw), model_type


def write(value: object) -> bytes:
    """Return JSON for Go's decoder."""
    return msgspec.json.encode(value)


def write_config(engine: EngineStatus, settings: Settings, host: Host) -> bytes:
    """Return the answer of GetConfig, AOG's ``EngineRecommendConfig``."""
    scheme, _, address = engine.rest.partition("://")
    active = engine.installation
    return write(
        {
            "host": engine.rest,
            "origin": address.partition(":")[0],
            "scheme": scheme,
            "recommend_model": "",
            "download_url": "",
            "download_path": str(settings.models_dir),
            "engine_path": str(active.directory if active else settings.versions_dir),
            "exec_path": str(engine.program.parent) if engine.program else "",
            "exec_file": engine.program.name if engine.program else "",
            "device_type": ",".join(host.devices),
        }
    )


def write_models(models: Iterable[LocalModel]) -> bytes:
    """Return the answer of ListModels and GetRunningModels.

    ``name`` is compared with what the user typed, so it is the id as it was pulled; times need a zone and sizes must be
    whole numbers, or the whole list fails to decode.
    """
    return write(
        {
            "models": [
                {
                    "name": each.id,
                    "model": each.id,
                    "modified_at": each.modified.isoformat(),
                    "size": int(each.size),
                    "digest": each.digest,
                    "details": {
                        "format": each.format,
                        "family": each.family,
                        "families": [each.family] if each.family else [],
                        "parameter_size": each.parameter_size,
                        "quantization_level": each.quantization,
                    },
                }
                for each in models
            ]
        }
    )


def write_progress(progress: Progress) -> bytes:
    """Return one message of PullModelStream; AOG shows only what has a ``completed`` above 0."""
    return write(
        {
            "status": progress.status,
            "digest": progress.digest,
            "total": int(progress.total),
            "completed": max(int(progress.completed), 1),
        }
    )
