"""The settings that hold at once when the config file changes, without a new start."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.errors import OvmsError
from ovms_kernel.file_watch import FileWatch
from ovms_kernel.settings import config_file, read_settings

if TYPE_CHECKING:
    from ovms_kernel.settings import Settings

log = logging.getLogger(__name__)

LIVE = ("aliases", "idle_unload", "pinned")
"""Settings of the kernel that are read anew; of models, ``pinned`` and ``idle_unload`` are."""
LIVE_OF_MODELS = ("pinned", "idle_unload")


def is_live(kind: str, name: str) -> bool:
    """Tell whether a setting holds without a new start.

    :param kind: the section's kind, such as ``models``; empty for a setting of the kernel.
    """
    return name in LIVE_OF_MODELS if kind == "models" else (kind or name) in LIVE


class LiveSettings:
    """Settings whose live part follows the config file.

    :param settings: those of the start, which hold until the file changes.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._file = FileWatch(config_file(os.environ, settings.data_dir))
        self._seen = self._file.look()

    def now(self) -> Settings:
        """Return the settings that hold now; costs a look at the file's time.

        A file that cannot be read changes nothing, as somebody may be writing it.
        """
        if (signature := self._file.glance()) != self._seen:
            self._seen = signature
            try:
                self._adopt(read_settings(data_dir=self._settings.data_dir))
            except OvmsError as error:
                log.error("%s Until then the settings of before hold.", error.message)
        return self._settings

    def _adopt(self, new: Settings) -> None:
        old = self._settings
        models = {
            name: {
                key: value
                for section, live in ((old, False), (new, True))
                for key, value in section.sections.get("models", {}).get(name, {}).items()
                if (key in LIVE_OF_MODELS) is live
            }
            for name in {*old.sections.get("models", {}), *new.sections.get("models", {})}
        }
        self._settings = msgspec.structs.replace(
            old, sections={**old.sections, "models": models}, **{name: getattr(new, name) for name in LIVE}
        )
