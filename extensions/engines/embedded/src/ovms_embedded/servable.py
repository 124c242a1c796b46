"""A graph that is served: its state, its processes, and who uses it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from ovms_embedded import log

if TYPE_CHECKING:
    from ovms_embedded.config import Entry
    from ovms_embedded.graphs import Graph
    from ovms_embedded.templates import ChatTemplate
    from ovms_embedded.workers import Worker

QUEUE = 64
"""Requests that may wait for a servable, beyond those that it works on."""


class State(Enum):
    """Internal states of a graph, as the log names them."""

    BEGIN = "BEGIN"
    RELOADING = "RELOADING"
    AVAILABLE = "AVAILABLE"
    FAILED = "LOADING_PRECONDITION_FAILED"
    RETIRED = "RETIRED"


EXTERNAL = {
    State.BEGIN: ("LOADING", "OK"),
    State.RELOADING: ("LOADING", "OK"),
    State.AVAILABLE: ("AVAILABLE", "OK"),
    State.FAILED: ("LOADING", "FAILED_PRECONDITION"),
    State.RETIRED: ("END", "OK"),
}


class Overloaded(Exception):
    """The servable's queue is full."""


@dataclass
class Servable:
    """A graph that was listed at least once."""

    entry: Entry
    state: State = State.BEGIN
    cause: str = ""
    """Why it failed."""
    graph: Graph | None = None
    worker: Worker | None = None
    loading: Worker | None = None
    """The worker that is to be its own, while it loads the model."""
    spec: dict[str, Any] = field(default_factory=dict)
    """What its worker was told to load."""
    undrafted: Worker | None = None
    """A worker of the same model without its drafts, once a request has asked for one."""
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while ``undrafted`` is started."""
    template: ChatTemplate | None = None
    """What renders the prompts of chats, where the graph generates text."""
    digest: str = ""
    """MD5 of the graph file that was tried last."""
    available_since: float = 0.0
    used: float = 0.0
    """When its last request ended, or it was loaded."""
    pause: float = 0.0
    """Seconds to wait before a worker that crashed is started again."""
    in_use: int = 0
    draining: int = 0
    """How many wait for the last user to leave."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced at every change of the state, and when the last user leaves and that is waited for."""

    @property
    def name(self) -> str:
        """The name that requests use."""
        return self.entry.name

    def processes(self) -> list[Worker]:
        """Return the workers that there are, loaded or not."""
        return [each for each in (self.worker or self.loading, self.undrafted) if each is not None]

    def forget(self, worker: Worker, cause: str) -> None:
        """Take note of the end of the worker without drafts; the next request for it starts another one."""
        log.manager.error("Mediapipe: %s", cause)
        if self.undrafted is worker:
            self.undrafted = None

    def aliases(self) -> list[str]:
        """Names of LoRA adapters and composites, which are served like models."""
        options = self.graph.options if self.graph else {}
        return [each["alias"] for key in ("lora_adapters", "composite_lora_adapters") for each in options.get(key, ())]

    def hides_base(self) -> bool:
        """Whether only the aliases are listed, because the adapters cannot be left out."""
        adapters = self.graph.options.get("lora_adapters", ()) if self.graph else ()
        return any(each["mode"] in ("STATIC", "FUSE") for each in adapters)

    async def render(self, messages: list[dict[str, Any]], tools: list[Any], context: dict[str, Any]) -> str:
        """Return the prompt of a chat.

        :raises Invalid: the template refuses it or fails.
        """
        if self.template is None:
            raise AssertionError
        return await self.template.render(messages, tools, context)

    def limit(self) -> int:
        """How many requests may run and wait."""
        return (self.graph.options.get("max_num_seqs", 0) if self.graph else 0) + QUEUE

    def enter(self) -> None:
        """Begin to use it.

        :raises Overloaded: too many do.
        """
        if self.in_use >= self.limit():
            raise Overloaded(self.name)
        self.in_use += 1

    def leave(self) -> None:
        """End to use it."""
        self.in_use -= 1
        self.used = time.monotonic()
        if self.draining and not self.in_use:
            self.notify()

    @property
    def serves(self) -> bool:
        """Whether it takes requests at once."""
        return self.state is State.AVAILABLE and self.worker is not None

    def notify(self) -> None:
        """Wake everything that waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def move(self, state: State, event: str, cause: str = "") -> None:
        """Change the state, and say so in the log."""
        self.state = state
        self.cause = cause
        if state is State.AVAILABLE:
            self.available_since = self.used = time.monotonic()
        log.manager.info("Mediapipe: %s state changed to: %s after handling: %s", self.name, state.value, event)
        self.notify()

    async def drained(self) -> None:
        """Wait until nobody uses it."""
        self.draining += 1
        try:
            while self.in_use:
                await self.changed.wait()
        finally:
            self.draining -= 1
