"""``/openapi.json``: what is answered where; OpenAI's and the dialects' own documents have the shapes."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovms_face_http.app import Routes

FORMS = ("/audio/transcriptions", "/audio/translations", "/images/edits")
"""Ends of paths that take a multipart form."""


def document(routes: Routes) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    listed = [(method, path) for method, path in routes.exact]
    listed += [(method, f"{path}{{name}}") for method, path, _ in routes.below]
    for _, routed in routes.dialects:
        for route in (each for each in routed if getattr(each, "include_in_schema", True)):
            listed += [(each, getattr(route, "path", "/")) for each in getattr(route, "methods", ()) if each != "HEAD"]
    for method, path in sorted(listed, key=lambda each: (each[1], each[0])):
        paths.setdefault(path, {})[method.lower()] = _operation(method, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ovms-plugin", "version": version("ovms-face-http")},
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
    }


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _operation(method: str, path: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": f"{method.lower()}{path.replace('/', '_').replace('{name}', 'name')}",
        "responses": {
            "200": {"description": "The answer"},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if "{name}" in path:
        made["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if method == "POST":
        kinds = ("multipart/form-data", "application/json") if path.endswith(FORMS) else ("application/json",)
        made["requestBody"] = {"required": True, "content": {each: {"schema": {"type": "object"}} for each in kinds}}
    if path == "/health":
        made["security"] = []
    return made
