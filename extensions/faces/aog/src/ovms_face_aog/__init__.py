"""AOG's way to the kernel: hashicorp's go-plugin protocol, and AOG's ProviderService over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovms_face_aog.face import AogFace as AogFace

__all__ = ["AogFace"]


def __getattr__(name: str) -> object:
    # A host waits for the handshake, and help for the commands: neither needs what the face's settings import.
    if name == "AogFace":
        from ovms_face_aog.face import AogFace

        return AogFace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
