"""The process that the host started, which stays when the plugin's own process dies, and starts it again.

A host of go-plugin starts a plugin once and dials the socket of its handshake again whenever the connection breaks. So
a small parent owns that socket's path and forks the process that serves it. While there is no such process,
connections wait at a socket of the parent's, which passes their bytes on as soon as there is one again; all others are
made to the plugin's process directly. Linux only; elsewhere the plugin serves the host itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import NoReturn

WATCH_PERIOD = 0.2
"""Seconds between two looks at whether the host still lives."""
RESTARTS, RESTART_PERIOD = 5, 60.0
"""As often within these seconds the plugin's process is started again; more is a fault that this does not heal."""
NOTICE = 1.0
"""Seconds that the plugin's process has to see that the host is gone, before it is asked to end."""
STOP_LIMIT = 12.0
"""Seconds that the plugin's process has to end when the host is gone."""
BUFFER = 1 << 20
"""Bytes of one direction of a connection that wait to be passed on."""
PUBLIC, WAITING = "grpc", "waiting"
"""Names of the sockets in the folder: what the host dials, and the parent's own behind it."""


class Seat:
    """Where the plugin's process serves: given to it by the parent.

    :param ready: descriptor that the parent reads.
    :param parent: the parent's process id, as it may have ended already.
    """

    def __init__(self, folder: Path, generation: int, ready: int, parent: int) -> None:
        self.folder = folder
        self.parent = parent
        self.private = folder / str(generation)
        """The path to listen at; :meth:`take` makes it the public one."""
        self.public = folder / PUBLIC
        self.first = generation == 0
        """The host waits for its line."""
        self._ready = ready

    def take(self) -> None:
        """Have what is dialled from now on arrive at the private socket."""
        self.private.rename(self.public)
        with contextlib.suppress(BrokenPipeError):  # the parent was killed, which the watch will find
            os.write(self._ready, b"1")
        os.close(self._ready)


def serve_again_and_again(folder: Path, serve: Callable[[Seat], NoReturn]) -> NoReturn:
    """Fork the process that calls ``serve``, and again whenever that dies without having ended by itself.

    To be called before the process has a thread.
    """
    parent = Parent(folder, serve)
    code = 1
    try:
        code = parent.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(code)


class Parent:
    """Watches the plugin's process and the host."""

    def __init__(self, folder: Path, serve: Callable[[Seat], NoReturn]) -> None:
        self._folder = folder
        self._serve = serve
        self._host = os.getppid()
        self._pid = os.getpid()
        self._child = 0
        self._generation = 0
        self._started: list[float] = []
        self._selector = selectors.DefaultSelector()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(folder / WAITING))
        self._door.listen(64)
        self._wake, self._woken = socket.socketpair()
        self._ready = -1
        self._serving = False

    def run(self) -> int:
        """Return the exit code when the plugin's process has ended by itself, or with the host."""
        for end in (self._wake, self._woken):
            end.setblocking(False)  # noqa: FBT003 - as sockets have it
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, self._pass_on)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the host as well, which then asks for the end
        self._selector.register(self._woken, selectors.EVENT_READ, self._drain)
        self._begin()
        while True:
            for key, events in self._selector.select(WATCH_PERIOD):
                key.data(events)
            if self._host_is_gone():
                return self._end()
            code = self._reap()
            if code is not None:
                return code

    def _begin(self) -> None:
        self._serving = False
        self._started.append(time.monotonic())
        reading, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            self._become_the_plugin(reading, writing)
        os.close(writing)
        self._ready = reading
        self._selector.register(reading, selectors.EVENT_READ, self._is_ready)

    def _become_the_plugin(self, reading: int, writing: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL if each != signal.SIGINT else signal.default_int_handler)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._door.close()
        self._wake.close()
        os.close(reading)
        self._serve(Seat(self._folder, self._generation, writing, self._pid))

    def _reap(self) -> int | None:
        """Start the plugin's process again if it died; return the exit code if it ended."""
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        began = time.monotonic() - RESTART_PERIOD
        recent = [each for each in self._started if each > began]
        if not self._serving and self._generation == 0:
            return code if code >= 0 else 1  # it never served
        if code == 0 or len(recent) > RESTARTS:
            return max(code, 0)
        self._close_ready()
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        with contextlib.suppress(OSError):
            os.write(2, f"[ERROR] The plugin's process died of {cause} and is started again.\n".encode())
        # What is dialled until then waits here.
        link = self._folder / "link"
        os.link(self._folder / WAITING, link)
        link.rename(self._folder / PUBLIC)
        self._generation += 1
        self._started = recent
        self._begin()
        return None

    def _is_ready(self, _events: int) -> None:
        served = os.read(self._ready, 1)
        self._close_ready()
        if served:
            self._serving = True
            if self._generation:
                self._let_in()

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._selector.unregister(self._ready)
            os.close(self._ready)
            self._ready = -1

    def _let_in(self) -> None:
        """Pass on the connections that waited."""
        self._door.setblocking(False)  # noqa: FBT003
        while True:
            try:
                host, _ = self._door.accept()
            except BlockingIOError:
                return
            plugin = socket.socket(socket.AF_UNIX)
            try:
                plugin.connect(str(self._folder / PUBLIC))
            except OSError:  # it died again: the host dials anew
                host.close()
                plugin.close()
                continue
            _Passage(self._selector, host, plugin)

    def _host_is_gone(self) -> bool:
        pipe = select.poll()
        pipe.register(2, 0)
        return os.getppid() != self._host or bool(pipe.poll(0))

    def _end(self) -> int:
        """End with the host: the plugin's process sees for itself that it is gone, and has some time to stop all."""
        began = time.monotonic()
        told = False
        while (passed := time.monotonic() - began) < STOP_LIMIT:
            if os.waitpid(self._child, os.WNOHANG)[0]:
                return 0
            if passed > NOTICE and not told:
                told = True
                self._pass_on(signal.SIGTERM)
            time.sleep(0.02)
        os.kill(self._child, signal.SIGKILL)
        return 0

    def _pass_on(self, number: int, _frame: object = None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, number)

    def _drain(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass


class _Passage:
    """Passes bytes between two sockets, both ways, until both have ended."""

    def __init__(self, selector: selectors.BaseSelector, one: socket.socket, other: socket.socket) -> None:
        self._selector = selector
        self._waiting = {one: bytearray(), other: bytearray()}
        """What is to be sent to a socket."""
        self._peer = {one: other, other: one}
        self._ended: set[socket.socket] = set()
        """Sockets that send no more."""
        for each in self._peer:
            each.setblocking(False)  # noqa: FBT003
            self._want(each, selectors.EVENT_READ)

    def _work(self, each: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = each.recv(1 << 16)
                self._waiting[self._peer[each]] += data
                if not data:
                    self._ended.add(each)
            for receiver, waiting in self._waiting.items():
                if waiting:
                    with contextlib.suppress(BlockingIOError):
                        del waiting[: receiver.send(waiting)]
                elif self._peer[receiver] in self._ended:
                    receiver.shutdown(socket.SHUT_WR)
        except OSError:
            self._ended.update(self._peer)
        if len(self._ended) == len(self._peer):
            self._close()
        else:
            self._register()

    def _register(self) -> None:
        for each in self._peer:
            full = len(self._waiting[self._peer[each]]) >= BUFFER or each in self._ended
            self._want(
                each, (0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE * bool(self._waiting[each]))
            )

    def _want(self, each: socket.socket, events: int) -> None:
        if each in self._selector.get_map():
            self._selector.unregister(each)
        if events:
            self._selector.register(each, events, lambda found: self._work(each, found))

    def _close(self) -> None:
        for each in self._peer:
            self._want(each, 0)
            each.close()
