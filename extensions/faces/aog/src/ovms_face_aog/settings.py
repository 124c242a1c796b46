"""The face's own settings, ``faces.aog``."""

from __future__ import annotations

import msgspec


class AogSettings(msgspec.Struct, frozen=True):
    """What can be set."""

    output_dir: str = ""
    """Folder for images and speech, as a whole path or one that begins with `~/`; empty = your folder for downloads."""
