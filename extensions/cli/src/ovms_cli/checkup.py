"""What ``doctor`` finds of the network, and what ``doctor --fix`` sets right by itself."""

from __future__ import annotations

import os
import ssl
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ovms_cli import output
from ovms_kernel.api.administration import search_models
from ovms_kernel.api.commands import Finding, NotSupported, OvmsError, forget_dead_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ovms_cli.session import Session
    from ovms_kernel.api.commands import Kernel

PATIENCE = 3.0
"""Seconds that a hub has to answer."""
BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name a file of certificates."""
PRIVATE = 0o077
"""What others may do to a file of a key; nothing of it is right."""


async def network(kernel: Kernel) -> list[Finding]:
    """Return which proxies and certificates are used, and whether the hub answers."""
    return [_proxies(), *_certificates(), *await _hub(kernel)]


def _proxies() -> Finding:
    known = urllib.request.getproxies()
    # What stands before the @ may be a password.
    shown = [f"{name}: {value.rpartition('@')[2]}" for name, value in sorted(known.items()) if value]
    return Finding("ok", "proxies", ", ".join(shown) or "none is set")


def _certificates() -> Iterator[Finding]:
    for name in BUNDLES:
        if (file := os.environ.get(name)) and not Path(file).is_file():
            yield Finding(
                "error", "certificates", f"{name} names {file}, which is not a file", f"Correct or unset {name}."
            )
            return
    own = next((f"{os.environ[name]}, by {name}" for name in BUNDLES if os.environ.get(name)), "")
    system = ssl.get_default_verify_paths()
    yield Finding("ok", "certificates", own or f"those of the system, {system.cafile or system.capath or 'built in'}")


async def _hub(kernel: Kernel) -> list[Finding]:
    name = kernel.settings.hub
    wrong = f"{name} did not answer within {PATIENCE:.0f} s"
    try:
        with anyio.fail_after(PATIENCE):
            await search_models(kernel, "openvino", limit=1)
    except NotSupported:
        return []  # it cannot be searched, so there is no cheap question
    except OvmsError as error:
        wrong = error.message.rstrip(".")
    except TimeoutError:
        pass
    else:
        return [Finding("ok", "hub", f"{name} answers")]
    remedy = (
        f"Behind a proxy, set HTTPS_PROXY; for a mirror, set hubs.{name}.endpoint; another hub is named by the "
        "setting hub; `ovms-plugin import` needs none."
    )
    return [Finding("warning", "hub", wrong, remedy)]


async def fix(session: Session, kernel: Kernel) -> list[str]:
    """Set right what can be without a loss; return what was done, a sentence each."""
    done = []
    if await forget_dead_server(session.settings.data_dir):
        done.append("The address of a server that is gone is removed.")
    if opened := _hide_keys(session):
        done.append(opened)
    if not await kernel.check_engine():
        with output.progress("engine") as report:
            installed = await kernel.install_engine(report=report)
        done.append(f"Engine {installed.version} ({installed.platform}) is installed.")
    return done


def _hide_keys(session: Session) -> str:
    if os.name == "nt":
        return ""
    keys = [session.settings.data_dir / "http" / "key", session.settings.data_dir / "config.yaml"]
    open_ = [each for each in keys if each.exists() and each.stat().st_mode & PRIVATE]
    for each in open_:
        each.chmod(0o600)
    return f"Only you can read {' and '.join(map(str, open_))} now." if open_ else ""
