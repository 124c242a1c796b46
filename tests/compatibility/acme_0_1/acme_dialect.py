from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ovms_kernel.api.faces import KernelApi


class Acme:
    name = "acme"

    def __init__(self, section: Mapping[str, Any]) -> None:
        pass

    def routes(self, kernel: KernelApi) -> list[BaseRoute]:
        async def hello(http: HttpRequest) -> Response:
            return PlainTextResponse("hello")

        return [Route("/acme/hello", hello)]
