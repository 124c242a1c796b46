"""Which platform is for this machine, why, and what happens if a guess was wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovms_kernel.engine.ovms import EXACT, GUESS
from ovms_kernel.errors import EngineFailed, NotFound, NotSupported, Unavailable
from ovms_kernel.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ovms_kernel.drivers import Platform
    from ovms_kernel.engine.installation import Installations
    from ovms_kernel.values import Host, Installation, Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
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
        return f"it is made for {system}"
    if fit > GUESS:
        return f"{system} derives from its system ({host.codename})"
    if fit > 1:
        return f"its libraries should fit {system}, which running it will tell"
    return f"nothing more special fits {system} on {host.machine}"


def explain(
    host: Host, platforms: Mapping[str, Platform], wanted: str = "", active: Installation | None = None
) -> list[Finding]:
    """Return which platform is chosen and why, and which comes next."""
    try:
        first, *others = candidates(host, platforms, wanted, active)
    except NotSupported as error:
        return [Finding("error", "platform", error.message)]
    text = f"{first.name}: {first.why}"
    if first.is_guess and others:
        text += f"; if it does not run, {others[0].name} is used"
    return [Finding("ok", "platform", text)]


async def install_best(
    installations: Installations,
    choices: list[Choice],
    host: Host,
    version: str,
    report: Callable[[Progress], None],
    *,
    activate: bool = True,
) -> Installation:
    """Install the engine of the best platform; where that was a guess and does not run here, of the next one.

    :param version: empty means the newest that is known to work.
    """
    for number, choice in enumerate(choices):
        release = choice.platform.release(host, version)
        try:
            return await installations.install(choice.name, choice.platform, release, report, activate=activate)
        except (EngineFailed, NotFound, Unavailable) as error:
            # A version that was asked for must not turn into another one.
            if not choice.is_guess or version or number + 1 == len(choices):
                raise
            if isinstance(error, EngineFailed):
                installations.forget(release)  # some hundred MB that are of no use here
            log.warning("Platform %s does not do here: %s Next is %s.", choice.name, error, choices[number + 1].name)
    raise NotSupported("No installed platform extension fits this system; install ovms-platform-portable.")
