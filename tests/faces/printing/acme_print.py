"""A face that takes requests from its standard input, a JSON object a line, and prints each one with its answer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import anyio
import msgspec

from ovms_kernel.api.faces import OvmsError, Request

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ovms_kernel.api.faces import KernelApi


class PrintSettings(msgspec.Struct, frozen=True):
    with_test: bool = False
    """Serve it beside the face `test`."""


class Print:
    settings_type = PrintSettings

    def __init__(self, settings: PrintSettings) -> None:
        self._settings = settings

    async def serve(self, kernel: Awaitable[KernelApi]) -> None:
        api = await kernel
        async for line in anyio.wrap_file(sys.stdin):
            service, fields = json.loads(line)
            print(service, json.dumps(fields), flush=True)
            try:
                answer = await api.invoke(service, Request(fields=fields, caller="print"))
                print(answer.body.decode(), flush=True)
            except OvmsError as error:
                print(error.code, error.message, flush=True)
