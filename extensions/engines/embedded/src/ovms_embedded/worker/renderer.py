"""A process that renders the chat templates of one model, because a template can take any time and any memory.

Python cannot end a thread, but anyone can end a process. ``ovms_embedded.templates`` starts these, and ends one that
takes too long; the memory is bounded in here.
"""

from __future__ import annotations

import sys
from typing import Any

from ovms_embedded import wire
from ovms_embedded.worker.chat_template import ChatTemplate, Unrenderable
from ovms_embedded.worker.pipe import Pipe, Refused, serve
from ovms_embedded.worker.process import bound_memory, open_pipe

MEMORY = 256 << 20
"""Bytes that rendering may take beyond what the process has at its start."""
PLAIN, TOOLS = "template", "tool_template"


class Renderer:
    """The model's template, and the one for requests with tools if it has its own.

    They are compiled at the first call, whose time is bounded.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self._compiled: dict[str, ChatTemplate] = {}

    def describe(self, _: int, __: dict[str, Any]) -> dict[str, Any]:
        """Return what is wrong with the templates: why they cannot be compiled, and whether they drop tool calls."""
        found = [self._template(name) for name in (PLAIN, TOOLS) if self._spec[name]]
        return {"drops_tool_calls": found[-1].drops_tool_calls}

    def render(self, _: int, payload: dict[str, Any]) -> str:
        """Return the prompt of a request."""
        name = TOOLS if payload["tools"] and self._spec[TOOLS] else PLAIN
        try:
            return self._template(name).render(payload["messages"], payload["tools"], payload["context"])
        except Unrenderable as error:
            raise Refused(str(error)) from error

    def _template(self, name: str) -> ChatTemplate:
        if name not in self._compiled:
            try:
                self._compiled[name] = ChatTemplate(self._spec[name], self._spec["tokens"])
            except Unrenderable as error:
                raise Refused(str(error)) from error
        return self._compiled[name]


def main() -> None:
    """Answer until the front process goes away."""
    pipe: Pipe = open_pipe()
    renderer = Renderer(pipe.receive()[1])
    bound_memory(MEMORY)
    pipe.send([wire.READY, {}])
    # Linux ends it with the front process; elsewhere a thread hears of that.
    serve(pipe, {"describe": renderer.describe, "render": renderer.render}, listen=sys.platform != "linux")


if __name__ == "__main__":
    main()
