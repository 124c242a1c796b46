"""What a go-plugin host sets for a plugin, and whether the plugin can serve that host.

The parent process reads it too, which stays small: nothing that the plugin's own process works with is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Magic(NamedTuple):
    """What plugin and host agreed on beforehand; a host that sets another cookie is not ours."""

    key: str
    value: str
    versions: tuple[int, ...]
    """Application protocol versions that we speak."""


AOG_PLUGIN = Magic("AOG_PLUGIN", "aog-provider-plugin-v1", (1,))
"""What AOG sets."""


class Refusal(Exception):
    """A plugin cannot be started here, or nobody asks for one; the text is for a person."""


def read_environment(magic: Magic, environment: Mapping[str, str]) -> int:
    """Check what the host set and return the application protocol version to speak.

    :raises Refusal: there is no host, or one that wants what cannot be offered.
    """
    if environment.get(magic.key) != magic.value:
        from importlib.util import find_spec

        otherwise = (
            "At a terminal use `ovms-plugin --help`, and `ovms-plugin deploy` makes AOG find it."
            if find_spec("ovms_cli")
            else "Install ovms-cli for a command to use at a terminal, which also makes AOG find it."
        )
        raise Refusal(
            "This program is a plugin that a host such as AOG starts by itself; it is not meant to be run bare. "
            + otherwise
        )
    if environment.get("PLUGIN_CLIENT_CERT"):
        raise Refusal(
            "The host asks for AutoMTLS, which gRPC's Python server cannot offer, as it cannot verify go-plugin's "
            "P-521 certificates; turn AutoMTLS off in the host's ClientConfig."
        )
    if environment.get("PLUGIN_MULTIPLEX_GRPC"):
        raise Refusal(
            "The host asks for gRPC broker multiplexing, which exists in Go only; turn GRPCBrokerMultiplex off in the "
            "host's ClientConfig."
        )
    offered = {
        int(each) for each in environment.get("PLUGIN_PROTOCOL_VERSIONS", "").split(",") if each.strip().isdigit()
    }
    return max(offered & set(magic.versions), default=min(magic.versions))
