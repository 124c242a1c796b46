"""Which platform is for this machine, why, and what happens if a guess was wrong."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from ovms_kernel.engine.archives import DigestUnknown
from ovms_kernel.engine.installation import AlreadyInstalling
from ovms_kernel.engine.ovms import EXACT, GUESS
from ovms_kernel.engine.record import Record, Skipped
from ovms_kernel.errors import BadRequest, EngineFailed, NotFound, NotSupported, Refused, Unavailable
from ovms_kernel.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovms_kernel.drivers import Platform
    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.values import Host, Installation, Progress

log = logging.getLogger(__name__)


class Choice(msgspec.Struct, frozen=True):
    """One platform that could be used."""

    name: str
    platform: Platform
    fit: int
    why: str

    @property
    def is_guess(self) -> bool:
        """Whether only a try can tell if it runs here."""
        return 1 < self.fit <= GUESS


def candidates(
    host: Host, platforms: Mapping[str, Platform], wanted: str = "", active: Installation | None = None
) -> list[Choice]:
    """Return the platforms for a host, the best first: by setting, else that of the engine in use, else by fit.

    :raises NotSupported: there is none; the sentence says what to install.
    """
    if wanted:
        if wanted not in platforms:
            raise NotSupported(
                f"No platform extension named {wanted} is loaded (there are: {', '.join(platforms) or 'none'}); "
                f"install ovms-platform-{wanted} or change the setting `platform`."
            )
        return [Choice(wanted, platforms[wanted], platforms[wanted].matches(host), "the setting `platform` names it")]
    found = [Choice(name, driver, driver.matches(host), "") for name, driver in platforms.items()]
    choices = [
        Choice(each.name, each.platform, each.fit, _why(each.fit, host))
        for each in sorted(found, key=lambda each: (-each.fit, each.name))
        if each.fit > 0
    ]
    if not choices:
        raise NotSupported("No installed platform extension fits this system; install ovms-platform-portable.")
    # A remote engine that was set up later wins over what is installed.
    if active and active.platform in platforms and choices[0].fit <= EXACT:
        used = next((each for each in found if each.name == active.platform), None)
        if used is not None:
            return [Choice(used.name, used.platform, used.fit, f"engine {active.version} in use was installed by it")]
    return choices


def _why(fit: int, host: Host) -> str:
    system = f"{host.distribution or host.os} {host.version}".strip()
    if fit > EXACT:
        return "its settings ask for it"
    if fit == EXACT:
        return f"built for {system}"
    if fit > GUESS:
        return f"{system} derives from its system{f' ({host.codename})' if host.codename else ''}"
    if fit > 1:
        return f"built for a system like {system}"
    return f"nothing more specific fits {system} on {host.machine}"


def explain(
    host: Host, platforms: Mapping[str, Platform], wanted: str = "", active: Installation | None = None
) -> Finding:
    """Return which platform is chosen and why, and which comes next."""
    try:
        first, *others = candidates(host, platforms, wanted, active)
    except NotSupported as error:
        return Finding("error", "platform", error.message)
    text = f"{first.name}: {first.why}"
    if first.is_guess and others:
        text += f"; falls back to {others[0].name} if it does not run"
    return Finding("ok", "platform", text)


async def install_engine(
    installations: Installations,
    host: Host,
    platforms: Mapping[str, Platform],
    *,
    version: str = "",
    platform: str = "",
    retry: bool = False,
    report: Callable[[Progress], None],
) -> Installation:
    """Install the engine of the first platform whose archive can be fetched, unpacked and run here.

    An engine in use is kept, unless the download of one that fits better failed last time: that is tried again.

    :param version: empty means the newest that is known to work; one that is named never turns into another one.
    :param platform: empty means the best.
    :param retry: also try again what was refused or did not run here, or fits better than what was chosen by name.
    """
    choices = candidates(host, platforms, platform)
    active, record = installations.active(), installations.read_record()
    if version:
        choices = [_offering(choices, host, version)]
    elif active and not platform:
        choices = _worth_trying(choices, active, record, retry=retry)
    first = choices[0]
    if active and active.platform == first.name:
        if active.version == first.platform.release(host, version).version:
            if platform:
                installations.write_record(replace(record, chosen=platform))
            return active
    elif active:
        log.warning("Engine %s of %s is in use; %s is tried.", active.version, active.platform, first.name)
    installed, skipped = await _install_first(installations, choices, host, version, report)
    tried = {choice.name for choice in choices}
    kept = [each for each in record.skipped if each.platform not in tried and not platform]
    installations.write_record(Record(platform, (*kept, *skipped)))
    return installed


async def _install_first(
    installations: Installations,
    choices: list[Choice],
    host: Host,
    version: str,
    report: Callable[[Progress], None],
) -> tuple[Installation, list[Skipped]]:
    """Install the engine of the first platform that works; return also those that did not."""
    skipped: list[Skipped] = []
    for choice, following in zip(choices, [*choices[1:], None], strict=True):
        try:
            return await _install(installations, choice, host, version, report), skipped
        except (AlreadyInstalling, Refused):
            raise
        except (BadRequest, EngineFailed, NotFound, Unavailable) as error:
            if following is None:
                if choice.fit > 1:
                    log.warning("`pip install ovms-platform-portable` adds an engine that runs on any system.")
                raise
            skipped.append(Skipped(choice.name, str(error), final=isinstance(error, BadRequest | EngineFailed)))
            log.warning("Platform %s is skipped: %s Next is %s.", choice.name, error, following.name)
    raise NotSupported("No installed platform extension fits this system; install ovms-platform-portable.")


def _offering(choices: list[Choice], host: Host, version: str) -> Choice:
    """Return the first platform that offers a version.

    :raises NotFound: none does; the sentence is that of the best platform.
    """
    refusals: list[NotFound] = []
    for choice in choices:
        try:
            choice.platform.release(host, version)
        except NotFound as error:
            refusals.append(error)
        else:
            return choice
    raise refusals[0]


def _worth_trying(choices: list[Choice], active: Installation, record: Record, *, retry: bool) -> list[Choice]:
    """Return the platforms that fit better than that of the engine in use and may work now, and that one."""
    given_up = {each.platform for each in record.skipped if each.final}
    number = next((n for n, each in enumerate(choices) if each.name == active.platform), len(choices))
    better = [each for each in choices[:number] if retry or not (each.name in given_up or record.chosen)]
    return [*better, *choices[number : number + 1]] or choices


async def _install(
    installations: Installations, choice: Choice, host: Host, version: str, report: Callable[[Progress], None]
) -> Installation:
    release = choice.platform.release(host, version)
    try:
        return await installations.install(choice.name, choice.platform, release, report)
    except DigestUnknown:
        if version or not release.verified or release.verified == release.version:
            raise
        log.warning("The SHA-256 of %s is not known, so %s is installed.", release.archive, release.verified)
        return await installations.install(
            choice.name, choice.platform, choice.platform.release(host, release.verified), report
        )
    except (BadRequest, EngineFailed):
        installations.forget(release)  # some hundred MB that are of no use here
        raise
