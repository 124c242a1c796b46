"""What the author of a hub imports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import *
from ovms_kernel.on_demand import on_demand

if TYPE_CHECKING:
    from ovms_kernel.drivers import FoundModel as FoundModel
    from ovms_kernel.drivers import Hub as Hub
    from ovms_kernel.drivers import SearchableHub as SearchableHub
    from ovms_kernel.fetch.http import Body as Body
    from ovms_kernel.fetch.http import FetchFailed as FetchFailed
    from ovms_kernel.fetch.http import Web as Web
    from ovms_kernel.fetch.http import check_reachable as check_reachable
    from ovms_kernel.fetch.hub_section import LISTING_LIMIT as LISTING_LIMIT
    from ovms_kernel.fetch.hub_section import LISTING_TIME as LISTING_TIME
    from ovms_kernel.fetch.hub_section import HubSettings as HubSettings
    from ovms_kernel.fetch.hub_section import check_owner as check_owner
    from ovms_kernel.fetch.hub_section import refusal as refusal
    from ovms_kernel.fetch.proxies import proxy_for as proxy_for
    from ovms_kernel.fetch.transfer import Pace as Pace
    from ovms_kernel.hookspecs import hookimpl as hookimpl
    from ovms_kernel.values import ModelRef as ModelRef
    from ovms_kernel.values import RemoteFile as RemoteFile
else:
    __getattr__ = on_demand(
        __name__,
        {
            "drivers": "FoundModel Hub SearchableHub",
            "fetch.http": "Body FetchFailed Web check_reachable",
            "fetch.proxies": "proxy_for",
            "fetch.hub_section": "LISTING_LIMIT LISTING_TIME HubSettings check_owner refusal",
            "fetch.transfer": "Pace",
            "hookspecs": "hookimpl",
            "values": "ModelRef RemoteFile",
        },
    )
