"""Ollama's API over the services: chat, generate, embed, and the models with pull and delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from ovms_dialect_ollama.endpoints import Endpoints

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ovms_kernel.api.faces import KernelApi

__all__ = ["Ollama"]


class Ollama:
    """The dialect."""

    name = "ollama"

    def routes(self, kernel: KernelApi) -> list[BaseRoute]:
        """Return the API's routes."""
        api = Endpoints(kernel)
        posts = ("chat", "generate", "embed", "embeddings", "show", "pull")
        return [
            Route("/", api.root, methods=["GET"]),
            *(Route(f"/api/{name}", getattr(api, name), methods=["POST"]) for name in posts),
            *(Route(f"/api/{name}", getattr(api, name), methods=["GET"]) for name in ("tags", "ps", "version")),
            Route("/api/delete", api.delete, methods=["DELETE"]),
            # Last, and of every method: its refusal is one that Ollama's clients understand.
            Route("/api/{rest:path}", api.unknown, methods=["GET", "POST", "DELETE"], include_in_schema=False),
        ]

    def error(self, status: int, message: str, code: str) -> dict[str, Any]:
        """Return the body of an error."""
        del status, code
        return {"error": message}
