"""The HTTP face: one address with OpenAI's API over whatever services are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovms_face_http.face import HttpFace as HttpFace

__all__ = ["HttpFace"]


def __getattr__(name: str) -> object:
    # Help imports the commands beside it, and must not wait for all that the face's settings need.
    if name == "HttpFace":
        from ovms_face_http.face import HttpFace

        return HttpFace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
