"""Events that remember what was told, so that tests can assert the exact sequence."""

from __future__ import annotations

from typing import Any

import anyio

from ovms_kernel.events import Events


class EventRecorder(Events):
    """Real events that also write down every call, whether anybody listens or not."""

    def __init__(self, time_limit: float = 5.0) -> None:
        super().__init__(time_limit)
        self.told: list[tuple[str, dict[str, Any]]] = []
        """Every event with its arguments, oldest first."""
        self._changed = anyio.Event()

    async def ask(self, hook: str, **arguments: object) -> list[tuple[str, Any]]:
        """Write the event down and call who listens."""
        self.told.append((hook, arguments))
        self._changed.set()
        self._changed = anyio.Event()
        return await super().ask(hook, **arguments)

    def names(self) -> list[str]:
        """Return the names of all events so far."""
        return [hook for hook, _ in self.told]

    async def wait_for(self, hook: str, *, count: int = 1, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until an event was told ``count`` times and return the arguments of that time."""
        with anyio.fail_after(timeout):
            while len(matching := [each for name, each in self.told if name == hook]) < count:
                await self._changed.wait()
        return matching[count - 1]
