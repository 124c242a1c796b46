"""What a program that runs a kernel of its own imports, as the process that a go-plugin host starts does.

Each name is imported when it is used: such a program says that it is there before it loads the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.companions import serve_companions as serve_companions
    from ovms_kernel.compose import compose_kernel as compose_kernel
    from ovms_kernel.kernel import Kernel as Kernel
    from ovms_kernel.log import Log as Log
    from ovms_kernel.log import set_level as set_level
    from ovms_kernel.settings import read_settings as read_settings
else:
    __getattr__ = on_demand(
        __name__,
        {
            "companions": "serve_companions",
            "compose": "compose_kernel",
            "kernel": "Kernel",
            "log": "Log set_level",
            "settings": "read_settings",
        },
    )
