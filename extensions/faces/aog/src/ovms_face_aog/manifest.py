"""``plugin.yaml``, AOG's manifest, as data made from the installed services.

Fields and their meaning: AOG's plugin SDK, ``types/metadata.go``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ovms_kernel.api.services import Service, ServiceDefinition

log = logging.getLogger(__name__)

Bodies = Literal["openvino", "full"]

FACE = "aog"
"""The key of ``ServiceDefinition.extras`` that is read here."""

PROVIDER = "ovms-plugin"
"""The plugin's name: AOG treats it as a plugin only if it contains ``plugin``, and its command line splits at ``_``."""

FLAVORS = frozenset({"aog", "aliyun", "baidu", "deepseek", "ollama", "openai", "openvino", "tencent"})
"""The conversion templates built into AOG; naming another one makes AOG panic at its start."""

SERVICES = frozenset({
    "chat", "embed", "generate", "image-to-image", "image-to-video", "rerank", "speech-to-text", "speech-to-text-ws",
    "text-to-image", "text-to-speech",
})  # fmt: skip
"""The names of services that AOG knows."""

TIMEOUT = 3600
"""Seconds that AOG gives a request. With 0 it gives a whole answer 60 and a stream 300, which a large model on a slow
machine exceeds; AOG's own engine has no limit. Without any, an engine that hangs would block AOG's only queue for good.
"""

SYSTEMS = ("darwin_amd64", "darwin_arm64", "linux_amd64", "linux_arm64", "windows_amd64")
"""``<GOOS>_<GOARCH>`` of the systems that have a launcher."""

DEFAULT_RESOURCES = {"data_dir": "${AOG_DATA_DIR}/engine/ovms-plugin"}
"""``resources`` of a manifest that was made for no machine in particular."""

MARK = "# AOG's manifest, made from the installed services by `ovms-plugin manifest`;"
"""How every ``plugin.yaml`` of this project begins."""


def executable(system: str) -> str:
    """Return the launcher's path in the plugin folder, with forward slashes, for one of ``SYSTEMS``."""
    return f"bin/{system.replace('_', '-')}/{PROVIDER}" + (".exe" if system.startswith("windows") else "")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What AOG reads of a plugin."""

    services: tuple[ServiceDefinition, ...]
    engine_host: str = "http://127.0.0.1:17666"
    bodies: Bodies = "openvino"
    """``openvino`` names the conversion templates of AOG's own engine, ``full`` those that keep every field."""

    def as_dict(
        self, *, systems: Sequence[str] = SYSTEMS, resources: Mapping[str, str] = DEFAULT_RESOURCES
    ) -> dict[str, Any]:
        """Return it in AOG's field names, in the order in which a person reads it.

        :param systems: those that the plugin's folder has a launcher for.
        :param resources: what our own settings are to begin with.
        """
        from importlib import metadata  # not before the handshake, which a host waits for

        return {
            "version": "1.0",
            "provider": {
                "name": PROVIDER,
                "display_name": "OpenVINO Model Server",
                "version": metadata.version("ovms-kernel"),
                "type": "local",
                "author": "ovms-plugin contributors",
                "description": "Chat, embeddings, images and speech on Intel hardware through OpenVINO Model Server",
                "engine_host": self.engine_host,
            },
            "services": [self._service(each) for each in self.services],
            "platforms": {system: {"executable": executable(system)} for system in systems},
            "resources": dict(resources),
        }

    def _service(self, definition: ServiceDefinition) -> dict[str, Any]:
        extras = definition.extras[FACE]
        return {
            "service_name": definition.name,
            "task_type": definition.model_type,
            "protocol": extras.get("protocol", "HTTP"),
            "expose_protocol": extras.get("expose_protocol", "HTTP"),
            "endpoint": definition.endpoint,
            "auth_type": "none",
            "default_model": definition.default_model,
            "support_models": list(definition.support_models),
            "config_ref": (self.bodies == "full" and extras.get("config_ref_full")) or extras["config_ref"],
            "timeout": extras.get("timeout", TIMEOUT),
            "capabilities": {
                "support_streaming": extras.get("streaming", definition.streaming),
                "support_bidirectional": definition.bidirectional,
            },
        }

    def as_yaml(self, *, systems: Sequence[str] = SYSTEMS, resources: Mapping[str, str] = DEFAULT_RESOURCES) -> str:
        """Return the text of ``plugin.yaml``; see ``as_dict``."""
        import yaml

        fields = self.as_dict(systems=systems, resources=resources)
        return MARK + " do not edit.\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)


def make_manifest(definitions: Iterable[ServiceDefinition], *, bodies: Bodies = "openvino") -> Manifest:
    """Return the manifest of those of these services that AOG can offer, sorted by name."""
    offered = []
    for each in sorted(definitions, key=lambda each: each.name):
        cause = why_not_offered(each)
        if not cause:
            offered.append(each)
        elif each.extras.get(FACE):  # it means to be offered
            log.warning("Service %s is not offered to AOG: %s.", each.name, cause)
    return Manifest(tuple(offered), bodies=bodies)


def why_not_offered(definition: ServiceDefinition) -> str:
    """Return what keeps AOG from offering a service, as the end of a sentence; empty if nothing does.

    One service that names no template costs AOG the whole plugin, and an unknown template ends AOG (D1-21, D1-22).
    """
    extras = definition.extras.get(FACE, {})
    reference, full = extras.get("config_ref"), extras.get("config_ref_full")
    if not reference:
        return f"it names no template of AOG's (extras {FACE}.config_ref)"
    for each in (reference, full):
        if each and str(each).partition(":")[0] not in FLAVORS:
            return f"AOG has no template {each}"
    if definition.name not in SERVICES:
        return f"AOG has no service {definition.name}"
    return ""


def manifest_of(services: Mapping[str, Service], *, bodies: Bodies = "openvino") -> Manifest:
    """Return the manifest of a kernel's services."""
    return make_manifest((each.definition for each in services.values()), bodies=bodies)
