"""What is installed, as OpenAI's list of models, and KServe's question whether a model is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anyio.to_thread

from ovms_kernel.api.faces import NotFound, Unavailable, context_length

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from ovms_face_http.exchange import Exchange
    from ovms_kernel.api.faces import KernelApi, LocalModel


class Models:
    """Endpoints about models."""

    def __init__(self, kernel: KernelApi) -> None:
        self._kernel = kernel
        self._lengths: dict[tuple[str, str], int | None] = {}

    async def list_all(self, exchange: Exchange) -> None:
        """List every installed model."""
        installed, loaded = await self._both()
        data = [await self._describe(each, loaded) for each in installed]
        await exchange.json({"object": "list", "data": data})

    async def retrieve(self, exchange: Exchange) -> None:
        """Describe one model, whose name may have a slash."""
        name = exchange.path.split("/", 3)[3]
        installed, loaded = await self._both()
        await exchange.json(await self._describe(find(installed, name), loaded))

    async def kserve(self, exchange: Exchange) -> None:
        """Tell whether a model is loaded, or what it is called, as KServe's clients ask."""
        name = unquote(exchange.path.removeprefix("/v2/models/"))
        asks_ready = name.endswith("/ready")
        installed, loaded = await self._both()
        model = find(installed, name.removesuffix("/ready"))
        if not asks_ready:
            await exchange.json(
                {"name": model.id, "versions": ["1"], "platform": "openvino", "inputs": [], "outputs": []}
            )
        elif model.id in loaded:
            await exchange.json({"name": model.id, "ready": True})
        else:
            raise Unavailable(f"{model.id} is installed and not loaded; the first request for it loads it.")

    async def voices(self, exchange: Exchange) -> None:
        """List the voices of the models that speak."""
        speakers = [each for each in await self._kernel.list_models() if each.model_type == "text_to_speech"]
        found = []
        for model in speakers:
            names = await anyio.to_thread.run_sync(voice_names, model.directory)
            found += [{"id": each, "name": each, "object": "voice", "model": model.id} for each in names]
        # OpenAI's lists have `data`, Open WebUI reads `voices`.
        await exchange.json({"object": "list", "data": found, "voices": found})

    async def _both(self) -> tuple[list[LocalModel], set[str]]:
        installed = await self._kernel.list_models()
        return installed, {each.id for each in await self._kernel.running_models()}

    async def _describe(self, model: LocalModel, loaded: Collection[str]) -> dict[str, Any]:
        return {
            "id": model.id,
            "object": "model",
            "created": int(model.modified.timestamp()),
            "owned_by": model.id.partition("/")[0],
            "type": model.model_type,
            "loaded": model.id in loaded,
            "context_length": await self._context_length(model),
            "size": model.size,
        } | ({"alias_of": model.alias_of} if model.alias_of else {})

    async def _context_length(self, model: LocalModel) -> int | None:
        if model.profile and model.profile.context:
            return model.profile.context
        key = (model.alias_of or model.id, model.digest)
        if key not in self._lengths:
            self._lengths[key] = await anyio.to_thread.run_sync(context_length, model.directory)
        return self._lengths[key]


def find(installed: list[LocalModel], name: str) -> LocalModel:
    """Return an installed model.

    :raises NotFound: it is not; the sentence says how to pull it.
    """
    for each in installed:
        if each.id == name:
            return each
    known = ", ".join(each.id for each in installed) or "none"
    wanted = name if "/" in name else "<owner>/<name>"
    raise NotFound(f"Model {name} is not installed; installed: {known}. Pull it with `ovms-plugin pull {wanted}`.")


def voice_names(directory: Path) -> list[str]:
    """Return the voices in a model's folder; one without any has its own voice under the name of OpenAI's first."""
    return sorted(each.stem for each in directory.glob("voices/*.bin")) or ["alloy"]
