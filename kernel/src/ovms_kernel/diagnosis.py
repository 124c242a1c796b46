"""What is wrong with extensions, platform, engine and models, each finding with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from ovms_kernel import administration
from ovms_kernel.errors import OvmsError
from ovms_kernel.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_kernel.kernel import Kernel


async def diagnose(kernel: Kernel) -> list[Finding]:
    """Return what is right and what is wrong, without changing anything or starting the engine."""
    findings = [*_extensions(kernel), *await _platform(kernel), *await _models(kernel)]
    for name, found in await administration.check_host(kernel):
        findings += [replace(each, subject=each.subject or name) for each in found]
    findings += [
        Finding("warning", each.extension, f"failed in {each.hook}: {each.cause}") for each in kernel.events.failures
    ]
    return findings


def _extensions(kernel: Kernel) -> Iterator[Finding]:
    for each in kernel.reports:
        if each.state == "broken":
            yield Finding("error", each.key, each.cause, f"Update or remove {each.distribution}.")
    yield Finding("ok", "extensions", f"{sum(each.state == 'loaded' for each in kernel.reports)} loaded")


async def _platform(kernel: Kernel) -> list[Finding]:
    chosen = kernel.control.explain()
    if chosen.level == "error":
        return [chosen]
    skipped = [
        Finding(
            "warning",
            "platform",
            f"{each.platform} is not used: {each.cause}",
            f"ovms-plugin engine install{' --retry' * each.final}",
        )
        for each in administration.skipped_platforms(kernel)
    ]
    return [chosen, *skipped, *await _engine(kernel)]


async def _engine(kernel: Kernel) -> list[Finding]:
    try:
        choice = kernel.control.choice()
        if (installation := kernel.installations.active()) is None:
            text = f"not installed; {choice.name} would install {administration.newest_engine(kernel)}"
            return [Finding("warning", "engine", text, "ovms-plugin engine install")]
        findings = [
            Finding("error" if each.fatal else "warning", "engine", each.what, each.remedy)
            for each in await choice.platform.requirements(installation)
        ]
    except OvmsError as error:
        return [Finding("error", "engine", error.message)]
    return findings or [Finding("ok", "engine", f"{installation.version} of {choice.name}, nothing is missing")]


async def _models(kernel: Kernel) -> list[Finding]:
    """Return the models that answer nonsense on a device."""
    return [
        Finding(
            "warning",
            each.id,
            f"answers {entry.fault} on {entry.key.device} (engine {entry.key.engine})",
            f"Update the driver of that device or the engine, or run `ovms-plugin passport {each.id}`.",
        )
        for each in await kernel.list_models()
        for entry in administration.passport_of(kernel, each)
        if entry.fault
    ]
