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

LIVE = (
    "aliases", "hub", "idle_unload", "load_timeout", "max_loaded", "memory_budget", "pinned", "staging_age",
    "switch_patience",
)  # fmt: skip
"""Settings of the kernel that are read anew."""
LIVE_KINDS = ("hubs", "models")
"""Kinds of sections that are read anew."""


def is_live(kind: str, name: str) -> bool:
    """Tell whether a setting holds without a new start.

    :param kind: the section's kind, such as ``models``; empty for a setting of the kernel.
    """
    return kind in LIVE_KINDS or (not kind and name in LIVE)


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
                log.error("%s Until then the earlier settings hold.", error.message)
        return self._settings

    def _adopt(self, new: Settings) -> None:
        sections = {kind: new.sections.get(kind, {}) for kind in LIVE_KINDS}
        self._settings = msgspec.structs.replace(
            self._settings,
            sections={**self._settings.sections, **sections},
            **{name: getattr(new, name) for name in LIVE},
        )
