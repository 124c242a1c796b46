"""Which model answers a request: the one it names, else the only sensible one, of the right type and loaded."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.values import LocalModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ovms_kernel.models.library import Library
    from ovms_kernel.models.serving import Serving

FOREIGN = ""
"""The type of a model that the engine has and we have not."""
FOREIGN_PERIOD = 10.0
"""Seconds for which an engine is believed to serve such a model."""


class Answering:
    """Finds and loads the model for each request, and remembers which one answered last."""

    def __init__(self, library: Library, serving: Serving) -> None:
        self._library = library
        self._serving = serving
        self._last: dict[str, str] = {}
        self._foreign: dict[str, float] = {}

    async def ready(self, model: str, model_type: str) -> str:
        """Make sure that the model is served and return its id; see ``drivers.Engine``."""
        if self._foreign.get(model, 0.0) > time.monotonic():
            return model
        chosen = self._serving.served.get(model) or await self._choose(model, model_type)
        if chosen.model_type == FOREIGN:
            self._foreign[model] = time.monotonic() + FOREIGN_PERIOD
            return chosen.id
        if chosen.model_type != model_type:
            installed = await anyio.to_thread.run_sync(self._library.list)
            raise BadRequest(
                f"{chosen.id} is for {chosen.model_type} and this request needs a model for {model_type}; "
                f"name one of these: {_names(installed, model_type)}."
            )
        await self._serving.ensure(chosen.id)
        self._last[model_type] = chosen.id
        return chosen.id

    async def _choose(self, model: str, model_type: str) -> LocalModel:
        installed = await anyio.to_thread.run_sync(self._library.list)
        if not model:
            candidates = [each for each in installed if each.model_type == model_type]
            chosen = [each for each in candidates if each.id == self._last.get(model_type)] or candidates
            if len(chosen) == 1:
                return chosen[0]
            found = f"several are ({_names(installed, model_type)})" if chosen else "none is"
            raise NotFound(
                f"The request names no model and {found} installed for {model_type}; "
                "name one, or pull one with `ovms-plugin pull <owner>/<name>`."
            )
        for each in installed:
            if each.id == model:
                return each
        # Somebody else's engine serves models of their own; of what type, it does not say.
        if await self._serving.serves(model):
            return LocalModel(model, Path(), FOREIGN, 0, "", datetime.now(UTC))
        raise NotFound(
            f"Model {model} is not installed; installed for {model_type}: {_names(installed, model_type)}. "
            f"Pull it with `ovms-plugin pull {model if '/' in model else '<owner>/<name>'}`."
        )


def _names(installed: Sequence[LocalModel], model_type: str) -> str:
    return ", ".join(each.id for each in installed if each.model_type == model_type) or "none"
