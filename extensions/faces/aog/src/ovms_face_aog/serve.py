"""Plugin mode: what runs when a go-plugin host started this process.

The handshake comes first and as little as possible before it; the kernel is composed when the host has its line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from ovms_face_aog.parent import Seat
    from ovms_face_aog.process import PluginProcess
    from ovms_kernel.api.faces import KernelApi
    from ovms_kernel.api.programs import Kernel

PORTS = {"rest_port": 17666, "grpc_port": 17900}
"""The engine's ports where none are set.

AOG's own OpenVINO engine wants 16666 and 9000; if ours were first to take them, AOG would ask ours for its health."""


def main(launcher: str = "") -> None:
    """Serve the host that started this process until it ends or asks for the end, and exit.

    On Linux the plugin's own process is a child, which is started again if it dies.

    :param launcher: the file that the host started, if that is not ``sys.argv[0]``.
    """
    # grpc's own handlers for forks would meet the engine's start; and its chatter is nobody's business.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ovms_face_aog.environment import AOG_PLUGIN, Refusal, read_environment
    from ovms_face_aog.sockets import make_folder

    try:
        read_environment(AOG_PLUGIN, os.environ)
    except Refusal as refusal:
        # At the first column, so that a host's log shows it as an error.
        print(f"[ERROR] {refusal}", file=sys.stderr)  # noqa: T201 - there is no log yet
        sys.exit(1)
    if sys.platform == "linux" and (folder := make_folder(os.environ)):
        from ovms_face_aog.parent import serve_again_and_again

        serve_again_and_again(folder, lambda seat: _be_the_plugin(launcher, seat))
    _be_the_plugin(launcher)


def _be_the_plugin(launcher: str, seat: Seat | None = None) -> NoReturn:
    from ovms_face_aog.environment import Refusal
    from ovms_face_aog.process import take_process

    try:
        process = take_process(launcher, seat)
    except OSError:
        os._exit(1)  # without standard streams there is nobody to tell
    _log_crashes(process.host.stderr)
    code = 0
    try:
        import asyncio

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(process))
    except* Refusal as refusals:
        cause: BaseException = refusals
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        _log_error(str(cause))
        code = 1
    except* Exception:  # noqa: BLE001 - the last frame: it is logged, and the code tells
        _log_error("The plugin failed", exc_info=True)
        code = 1
    process.log.close()
    # Threads that still work for requests nobody waits for must not hold us: the host kills after 2 s.
    os._exit(code)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, which costs a request half of what asyncio's own does, where there is a uvloop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(process: PluginProcess) -> None:
    """Serve the face, and compose the kernel that it waits for meanwhile."""
    import asyncio

    from ovms_face_aog import AogFace
    from ovms_face_aog.settings import AogSettings

    asyncio.get_running_loop().set_exception_handler(_log_unhandled)
    composition = Composition()
    async with asyncio.TaskGroup() as group:
        composing = group.create_task(composition.hold(process))
        await AogFace(AogSettings(), process).serve(composition)
        composition.ended.set()
        if not composition.wanted.is_set():
            composing.cancel()


async def serve(process: PluginProcess, kernel: Awaitable[KernelApi]) -> None:
    """Serve ProviderService to the host from the handshake to the end; everything is stopped before the host knows."""
    from ovms_face_aog.goplugin import Server
    from ovms_face_aog.process import passed_by
    from ovms_face_aog.provider import SERVICE, Provider, rpc_handlers
    from ovms_kernel.api.faces import OvmsError

    if process.of_aog:
        from ovms_face_aog.quirks import AogProvider

        provider: Provider = AogProvider(kernel, lambda: passed_by(process.manifest))
    else:
        provider = Provider(kernel)

    async def stop(reason: str) -> None:
        await provider.stop()
        try:
            kernel = await provider.kernel()
        except OvmsError:
            return  # it was told when it happened
        await kernel.stop(reason)

    async with provider:
        server = Server({SERVICE: rpc_handlers(provider)}, stop, process.host, process.seat)
        await server.start(process.version, process.stdout, os.environ)
        provider.begin(provider.kernel, "compose")
        await server.serve()


class Composition:
    """The kernel, composed when it is first awaited and held until the end; without one every rpc says why."""

    def __init__(self) -> None:
        import asyncio

        self.wanted, self.ended = asyncio.Event(), asyncio.Event()
        self._composed: asyncio.Future[KernelApi] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, KernelApi]:
        import asyncio

        self.wanted.set()
        return asyncio.shield(self._composed).__await__()

    async def hold(self, process: PluginProcess) -> None:
        """Compose it when it is wanted, and stop it at the end."""
        await self.wanted.wait()
        import asyncio

        from ovms_face_aog.sockets import remove_stale_folders
        from ovms_kernel.api.faces import OvmsError, collect_rarely
        from ovms_kernel.api.programs import serve_companions

        try:
            kernel = _compose(process)
        except OvmsError as error:
            _log_error(error.message)
            self._fail(error)
            return
        except Exception as error:  # noqa: BLE001 - the process must live, or AOG never starts it again
            _log_error("The plugin could not be composed", exc_info=True)
            self._fail(OvmsError(f"The plugin could not be composed ({type(error).__name__}: {error})."))
            return
        async with kernel, asyncio.TaskGroup() as group:
            api = cast("KernelApi", kernel)
            collect_rarely()
            self._composed.set_result(api)
            companions = group.create_task(serve_companions(api, "aog"))
            await asyncio.to_thread(remove_stale_folders)
            await self.ended.wait()
            companions.cancel()

    def _fail(self, error: Exception) -> None:
        self._composed.set_exception(error)
        self._composed.exception()  # nobody need ask for it


def _compose(process: PluginProcess) -> Kernel:
    from ovms_face_aog.process import data_dir_of
    from ovms_kernel.api.programs import compose_kernel, read_settings, set_level

    defaults: dict[str, Any] = dict(PORTS) if process.of_aog else {}
    if folder := data_dir_of(process.manifest, os.environ):
        defaults["data_dir"] = Path(folder)
    settings = read_settings(defaults=defaults)
    process.log.add_file(settings.logs_dir / "plugin.log")
    set_level(settings.log_level)
    return compose_kernel(settings)


def _log_crashes(stderr: int) -> None:
    """Have errors that nobody catches logged as such; those of native code go where the host reads them."""
    import faulthandler
    import threading

    def log_uncaught(kind: Any, error: Any, trace: Any) -> None:  # noqa: ANN401 - as Python calls it
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
