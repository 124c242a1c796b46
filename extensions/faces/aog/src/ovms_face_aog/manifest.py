"""``plugin.yaml``, AOG's manifest, as data made from the installed services.

Fields and their meaning: AOG's plugin SDK, ``types/metadata.go``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import metadata
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

SYSTEMS = ("darwin_amd64", "darwin_arm64", "linux_amd64", "linux_arm64", "windows_amd64")
"""``<GOOS>_<GOARCH>`` of the systems that have a launcher."""

DEFAULT_RESOURCES = {"data_dir": "${AOG_DATA_DIR}/engine/ovms-plugin"}
"""``resources`` of a manifest that was made for no machine in particular."""

MARK = "# AOG's manifest, made from the installed services by `ovms-plugin manifest`;"
"""How every ``plugin.yaml`` of ours begins."""


def executable(system: str) -> str:
    """Return the launcher's path in the plugin folder, with forward slashes, for one of ``SYSTEMS``."""
    return f"bin/{system.replace('_', '-')}/{PROVIDER}" + (".exe" if system.startswith("windows") else "")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What AOG reads of a plugin."""

    services: tuple[ServiceDefinition, ...]
    engine_host: str = "http://127.0.0.1:16666"
    bodies: Bodies = "openvino"
    """``openvino`` names the conversion templates of AOG's own engine, ``full`` those that keep every field."""

    def as_dict(
        self, *, systems: Sequence[str] = SYSTEMS, resources: Mapping[str, str] = DEFAULT_RESOURCES
    ) -> dict[str, Any]:
        """Return it in AOG's field names, in the order in which a person reads it.

        :param systems: those that the plugin's folder has a launcher for.
        :param resources: what our own settings are to begin with.
        """
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
            "timeout": extras.get("timeout", 0),
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
    """Return the manifest of these services, sorted by name.

    A service that AOG could not convert for is left out: one without a template would cost AOG the whole plugin.
    """
    offered = []
    for each in sorted(definitions, key=lambda each: each.name):
        if template := unknown_template(each):
            log.error("Service %s is not offered to AOG, which has no template %s.", each.name, template)
        elif each.extras.get(FACE, {}).get("config_ref"):
            offered.append(each)
    return Manifest(tuple(offered), bodies=bodies)


def unknown_template(definition: ServiceDefinition) -> str:
    """Return the template that a service names and AOG does not have; empty if there is none such."""
    extras = definition.extras.get(FACE, {})
    for reference in (extras.get("config_ref"), extras.get("config_ref_full")):
        if isinstance(reference, str) and reference.partition(":")[0] not in FLAVORS:
            return reference
    return ""


def manifest_of(services: Mapping[str, Service], *, bodies: Bodies = "openvino") -> Manifest:
    """Return the manifest of a kernel's services."""
    return make_manifest((each.definition for each in services.values()), bodies=bodies)
