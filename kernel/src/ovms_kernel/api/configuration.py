"""What a program imports that shows or changes settings: which there are, where they are kept, how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.aliases import AliasSettings as AliasSettings
    from ovms_kernel.declared import NoSettings as NoSettings
    from ovms_kernel.declared import meant as meant
    from ovms_kernel.declared import settings_in as settings_in
    from ovms_kernel.extensions import settings_for as settings_for
    from ovms_kernel.files import locked as locked
    from ovms_kernel.files import write_atomically as write_atomically
    from ovms_kernel.live_settings import is_live as is_live
    from ovms_kernel.models.profiles import profile_of as profile_of
    from ovms_kernel.server import read_server as read_server
    from ovms_kernel.settings import ELSEWHERE as ELSEWHERE
    from ovms_kernel.settings import KINDS as KINDS
    from ovms_kernel.settings import PREFIX as PREFIX
    from ovms_kernel.settings import TOP as TOP
    from ovms_kernel.settings import ModelSettings as ModelSettings
    from ovms_kernel.settings import Settings as Settings
    from ovms_kernel.settings import config_file as config_file
    from ovms_kernel.settings import read_config as read_config
    from ovms_kernel.settings import read_settings as read_settings
else:
    __getattr__ = on_demand(
        __name__,
        {
            "aliases": "AliasSettings",
            "declared": "NoSettings meant settings_in",
            "extensions": "settings_for",
            "files": "locked write_atomically",
            "live_settings": "is_live",
            "models.profiles": "profile_of",
            "server": "read_server",
            "settings": "ELSEWHERE KINDS PREFIX TOP ModelSettings Settings config_file read_config read_settings",
        },
    )
