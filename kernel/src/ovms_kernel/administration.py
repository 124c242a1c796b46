"""What a person asks of a kernel beyond what requests need: searching, checking, looking into it, and changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec

from ovms_kernel import aliases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ovms_kernel.drivers import FoundModel
    from ovms_kernel.engine.record import Skipped
    from ovms_kernel.kernel import Kernel
    from ovms_kernel.models.passport import PassportEntry
    from ovms_kernel.values import Finding, LocalModel, ModelRef, Profile, PullPlan


class EngineReport(msgspec.Struct, frozen=True):
    """What is known of the engine without starting it."""

    state: str
    """``ready``, or what it does instead, as the end of a sentence."""
    version: str
    """That runs, or that would; empty if none is installed."""
    rest: str = ""
    grpc: str = ""
    """Where it answers; empty while it does not run."""
    pid: int | None = None


# -- models ------------------------------------------------------------------------------------------------------------


async def search_models(kernel: Kernel, words: str, hub: str = "", limit: int = 20) -> Sequence[FoundModel]:
    """Return models of a hub that the words find.

    :param hub: empty means the one by setting.
    :raises NotSupported: there is none of that name, or it cannot be searched.
    """
    return await kernel.ingest.search(words, hub, limit)


async def plan_pull(kernel: Kernel, ref: ModelRef) -> PullPlan:
    """Return what the hub has of a model and how much of that is here, without changing anything.

    :raises BadRequest: it is no model that can be served.
    """
    return await kernel.ingest.plan(ref)


def find_model(kernel: Kernel, name: str) -> LocalModel:
    """Return an installed model by its name or an alias.

    :raises NotFound: there is none; the sentence says what there is.
    """
    return kernel.store.find(aliases.target(kernel.aliases, name))


async def check_options(kernel: Kernel, model: LocalModel, options: Mapping[str, Any]) -> None:
    """Build the graph of an installed model with these options, for errors in them.

    :raises BadRequest: an option is unknown or has a wrong value.
    """
    await anyio.to_thread.run_sync(kernel.graphs.check_options, model, options)


async def check_profile(kernel: Kernel, name: str, profile: Profile) -> None:
    """Refuse a device, a context or options that the model of a profile cannot have.

    :raises NotFound: that model is not installed.
    :raises BadRequest: the sentence says what is wrong.
    """
    await anyio.to_thread.run_sync(kernel.graphs.check_profile, name, profile)


def passport_of(kernel: Kernel, model: LocalModel) -> list[PassportEntry]:
    """Return what a model answered to fixed requests, the latest last."""
    return kernel.passports.entries(model.digest)


def forget_passport(kernel: Kernel, model: LocalModel) -> bool:
    """Remove what is known of a model's answers, so that it is asked again; tell whether there was anything."""
    return kernel.passports.forget(model.digest)


# -- the engine --------------------------------------------------------------------------------------------------------


def report_engine(kernel: Kernel) -> EngineReport:
    """Return what is known of the engine without starting it."""
    state, info, active = kernel.supervisor.describe(), kernel.supervisor.info, kernel.installations.active()
    if info:
        return EngineReport(state, info.version, info.endpoint.rest, info.endpoint.grpc, info.pid)
    return EngineReport(state, active.version if active else "")


async def use_engine(kernel: Kernel, version: str) -> None:
    """Make an installed version the active one; an engine that runs is not touched.

    :raises NotFound: it is not installed.
    """
    await kernel.installations.activate(kernel.installations.find(version))


def newest_engine(kernel: Kernel) -> str:
    """Return the version that an upgrade brings: the one by setting, else the newest that is known to work."""
    return kernel.control.choice().platform.release(kernel.host, kernel.settings.engine_version).version


def skipped_platforms(kernel: Kernel) -> Sequence[Skipped]:
    """Return the platforms that fit better than the one in use and were not installed."""
    return kernel.installations.read_record().skipped


async def check_host(kernel: Kernel) -> Sequence[tuple[str, Sequence[Finding]]]:
    """Return what extensions find of this machine, by their key."""
    return await kernel.events.ask("ovms_check_host", host=kernel.host)
