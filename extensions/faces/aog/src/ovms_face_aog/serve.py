"""Plugin mode: what runs when a go-plugin host started this process.

The handshake comes first and as little as possible before it; the kernel is composed when the host has its line.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from ovms_face_aog.goplugin import Host
    from ovms_face_aog.provider import Provider
    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.log import Log

COOKIE = ("AOG_PLUGIN", "aog-provider-plugin-v1")
VERSIONS = (1,)
HOST = "AOG_VERSION"
"""Set by AOG alone: its habits are met only then."""


def main(launcher: str = "") -> None:
    """Serve the host that started this process until it ends or asks us to, and exit.

    :param launcher: the file that the host started, if that is not ``sys.argv[0]``; above it is ``plugin.yaml``.
    """
    # grpc's own handlers for forks would meet the engine's start; and its chatter is nobody's business.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ovms_face_aog import goplugin

    try:
        version = goplugin.read_environment(goplugin.Magic(*COOKIE, VERSIONS), os.environ)
        stdout, stderr = goplugin.take_standard_streams()
        host = goplugin.Host(stderr)
    except goplugin.Refusal as refusal:
        # At the first column, so that a host's log shows it as an error.
        print(f"[ERROR] {refusal}", file=sys.stderr)  # noqa: T201 - there is no log yet
        sys.exit(1)
    except OSError:
        sys.exit(1)  # without standard streams there is nobody to tell
    from ovms_kernel.log import Log

    log = Log(stderr)
    _log_crashes(stderr)
    code = 0
    try:
        _run(version, stdout, host, log, launcher or sys.argv[0])
    except goplugin.Refusal as refusal:
        _log_error(str(refusal))
        code = 1
    except Exception:  # noqa: BLE001 - the last frame: it is logged, and the code tells
        _log_error("The plugin could not go on", exc_info=True)
        code = 1
    log.close()
    # Threads that still work for requests nobody waits for must not hold us: the host kills after 2 s.
    os._exit(code)


def _run(version: int, stdout: int, host: Host, log: Log, launcher: str) -> None:
    import asyncio

    asyncio.run(_serve(version, stdout, host, log, launcher))


async def _serve(version: int, stdout: int, host: Host, log: Log, launcher: str) -> None:
    import asyncio

    from ovms_face_aog.goplugin import Server
    from ovms_face_aog.provider import Provider

    asyncio.get_running_loop().set_exception_handler(_log_unhandled)
    if os.environ.get(HOST):
        from ovms_face_aog.habits import AogProvider

        provider: Provider = AogProvider()
    else:
        provider = Provider()

    async def stop(reason: str) -> None:
        try:
            kernel = await provider.kernel()
        except Exception:  # noqa: BLE001 - it was told when it happened
            return
        await kernel.stop(reason)

    server = Server([provider.handler()], stop, host)
    await server.start(version, stdout, os.environ)
    try:
        await _live(provider, server, log, launcher)
    finally:
        await server.close()


async def _live(provider: Provider, server: Any, log: Log, launcher: str) -> None:
    """Compose the kernel and stay until the end; without a kernel every rpc tells why."""
    import asyncio

    from ovms_face_aog.goplugin import remove_stale_folders
    from ovms_kernel.errors import OvmsError
    from ovms_kernel.log import set_level

    try:
        from ovms_kernel.compose import compose_kernel
        from ovms_kernel.settings import read_settings

        manifest = read_manifest(launcher)
        provider.passed = passed_by(manifest)
        settings = read_settings(resources=resources_of(manifest))
        provider.section = settings.section("faces", "aog")
        log_file = settings.logs_dir / "plugin.log"
        log.add_file(log_file)
        set_level(settings.log_level)
        kernel = compose_kernel(settings)
    except OvmsError as error:
        _log_error(error.message)
        provider.fail(error)
    except Exception as error:  # noqa: BLE001 - the process must live, or AOG never starts it again
        _log_error("The plugin could not be composed", exc_info=True)
        provider.fail(OvmsError(f"The plugin could not be composed ({type(error).__name__}: {error}); mend that."))
    else:
        async with kernel:
            provider.use(cast("KernelApi", kernel), log_file)
            await asyncio.to_thread(remove_stale_folders)
            await server.ended.wait()
        return
    await server.ended.wait()


def read_manifest(launcher: str) -> Mapping[str, Any]:
    """Return the ``plugin.yaml`` that the launcher belongs to; empty if there is none.

    AOG starts plugins in a folder that is not theirs, so the manifest is looked for above the launcher.
    """
    from pathlib import Path

    path = manifest_above(Path(launcher).absolute())
    if path is None:
        return {}
    import yaml

    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def resources_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings in a manifest."""
    resources = manifest.get("resources")
    return resources if isinstance(resources, dict) else {}


def passed_by(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Return the services whose bodies AOG does not convert: those with its template that has no conversions."""
    services = manifest.get("services")
    listed = [each for each in services if isinstance(each, dict)] if isinstance(services, list) else []
    return frozenset(str(each.get("service_name")) for each in listed if str(each.get("config_ref")).startswith("aog:"))


def manifest_above(launcher: Path) -> Path | None:
    """Return the manifest of the plugin folder that a launcher lies in, if it does in one."""
    for folder in launcher.parents[:4]:
        if (folder / "plugin.yaml").is_file() and (folder / "bin") in launcher.parents:
            return folder / "plugin.yaml"
    return None


def _log_crashes(stderr: int) -> None:
    """Have errors that nobody catches logged as such; those of native code go where the host reads them."""
    import faulthandler
    import threading

    def log_uncaught(kind: Any, error: Any, trace: Any) -> None:
        import logging

        logging.getLogger(__name__).error("Unexpected error", exc_info=(kind, error, trace))

    sys.excepthook = log_uncaught
    threading.excepthook = lambda each: log_uncaught(each.exc_type, each.exc_value, each.exc_traceback)
    faulthandler.enable(stderr)


def _log_error(text: str, *, exc_info: bool = False) -> None:
    import logging

    logging.getLogger(__name__).error(text, exc_info=exc_info)


def _log_unhandled(_loop: object, context: Mapping[str, Any]) -> None:
    import logging

    error = context.get("exception")
    logging.getLogger("asyncio").error("%s", context.get("message", ""), exc_info=error)
