"""Calling the hooks of ``hookspecs``: the only place that does.

pluggy keeps who listens to what; the calls are made here, implementation by implementation, because one call of
pluggy's stops at the first implementation that raises and knows nothing of coroutines.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
import types
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from ovms_kernel import hookspecs
from ovms_kernel.errors import OvmsError, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping

log = logging.getLogger(__name__)

REVERSED = frozenset({"ovms_kernel_stopping"})


class HookFailure(msgspec.Struct, frozen=True):
    """One failed call of one extension."""

    extension: str
    hook: str
    cause: str


class _Manager(pluggy.PluginManager):
    def parse_hookimpl_opts(self, plugin: object, name: str) -> Any:  # noqa: ANN401 - pluggy's own type
        """Pass over an optional implementation that wants an argument which this kernel does not have."""
        options = super().parse_hookimpl_opts(plugin, name)
        if options and options["optionalhook"] and (caller := getattr(self.hook, name, None)) and caller.spec:
            wanted = inspect.signature(getattr(plugin, name)).parameters
            return options if set(wanted) <= set(caller.spec.argnames) else None
        return options


class _Listener(msgspec.Struct, frozen=True):
    """One implementation of one hook."""

    extension: str
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    is_coroutine: bool
    time_limit: float | None


class Events:
    """Who listens, and how they are asked.

    :param time_limit: seconds that one implementation has for one event.
    """

    def __init__(self, time_limit: float = 5.0) -> None:
        self._time_limit = time_limit
        self._manager = _Manager("ovms")
        self._manager.add_hookspecs(hookspecs)
        self._listeners: dict[str, tuple[_Listener, ...]] = {}
        """Those of each hook, in the order in which they are called: looked up for every request."""
        self._stuck: set[tuple[str, str]] = set()
        self.failures: deque[HookFailure] = deque(maxlen=100)
        """The last failures, oldest first."""

    def register(self, listeners: Mapping[str, object]) -> dict[str, str]:
        """Register named listeners, in the order in which they are to be called.

        :return: for each one that was refused, its name and why.
        """
        refused: dict[str, str] = {}
        # pluggy calls what was registered last first.
        for name, listener in reversed(list(listeners.items())):
            try:
                self._manager.register(listener, name)
                self._manager.check_pending()
                for caller in self._manager.get_hookcallers(listener) or ():
                    for each in caller.get_hookimpls():
                        if each.plugin is listener and (each.wrapper or each.hookwrapper):
                            raise TypeError(f"{caller.name} is a wrapper, which events do not have")
            except Exception as error:  # noqa: BLE001 - whatever a listener does wrong costs itself alone
                if self._manager.get_plugin(name) is not None:
                    self._manager.unregister(name=name)
                refused[name] = " ".join(str(error).split())
        self._listeners.clear()
        return refused

    def listens(self, hook: str) -> bool:
        """Return whether anything implements a hook, so that nothing is made for an event that nobody hears."""
        return bool(self._of(hook))

    def _of(self, hook: str) -> tuple[_Listener, ...]:
        if (found := self._listeners.get(hook)) is None:
            implementations = getattr(self._manager.hook, hook).get_hookimpls()
            if hook not in REVERSED:
                implementations = list(reversed(implementations))
            # The kernel's own listeners take the time that they need, such as for an unload that waits for requests.
            found = self._listeners[hook] = tuple(
                _Listener(
                    each.plugin_name,
                    each.function,
                    each.argnames,
                    inspect.iscoroutinefunction(each.function),
                    None if each.plugin_name.startswith("kernel.") else self._time_limit,
                )
                for each in implementations
            )
        return found

    async def ask(self, hook: str, **arguments: object) -> list[tuple[str, Any]]:
        """Call every implementation in order and return what they said, as pairs of extension and result.

        :raises Refused: an implementation of a ``before`` or ``amend`` hook vetoes.
        """
        may_veto = hook.startswith(("ovms_before_", "ovms_amend_"))
        results: list[tuple[str, Any]] = []
        cancelled: BaseException | None = None
        for each in self._of(hook):
            try:
                result = await self._call(each, hook, [arguments[name] for name in each.arguments])
            except OvmsError as error:
                if may_veto and isinstance(error, Refused):
                    raise Refused(f"{error.message} (extension {each.extension})") from error
                self._failed(each.extension, hook, error.message)
            except TimeoutError:
                self._failed(each.extension, hook, f"no answer within {self._time_limit:g} s")
            except Exception as error:
                log.exception("Extension %s failed in %s", each.extension, hook)
                self._failed(each.extension, hook, f"{type(error).__name__}: {error}", logged=True)
            except BaseException as error:
                import asyncio

                if may_veto or not isinstance(error, asyncio.CancelledError):
                    raise
                cancelled = error  # what happened has happened, so the others are told
            else:
                if result is not None:
                    results.append((each.extension, result))
        if cancelled:
            raise cancelled
        return results

    async def tell(self, hook: str, **arguments: object) -> None:
        """Call every implementation in order; failures are only reported."""
        await self.ask(hook, **arguments)

    async def _call(self, listener: _Listener, hook: str, values: list[object]) -> object:
        key = (listener.extension, hook)
        if key in self._stuck:
            raise RuntimeError("still busy with an earlier event")
        if listener.is_coroutine:
            work = listener.function(*values)
            try:  # most never wait, and a timer costs more than what they do
                waits_for = work.send(None)
            except StopIteration as done:
                return done.value
        import asyncio

        async with asyncio.timeout(listener.time_limit):
            if listener.is_coroutine:
                return await _rest(work, waits_for)
            self._stuck.add(key)
            result = await _in_thread(lambda: listener.function(*values), lambda: self._stuck.discard(key))
            return await result if inspect.isawaitable(result) else result

    def _failed(self, extension: str, hook: str, cause: str, *, logged: bool = False) -> None:
        self.failures.append(HookFailure(extension, hook, cause))
        if not logged:
            log.error("Extension %s failed in %s: %s", extension, hook, cause)


@types.coroutine
def _rest(work: Coroutine[Any, Any, object], waits_for: object) -> Generator[Any, Any, object]:
    """Await what is left of a coroutine that has begun to wait."""
    while True:
        try:
            answer = yield waits_for
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
            step = partial(work.throw, error)
        else:
            step = partial(work.send, answer)
        try:
            waits_for = step()
        except StopIteration as done:
            return done.value


async def _in_thread(function: Callable[[], Any], finished: Callable[[], None]) -> Any:  # noqa: ANN401 - its result
    """Run a function that should not block, so that one that does delays nothing else.

    A daemon thread of its own, because a pool's thread that never returns would keep the process from ending.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: object, error: BaseException | None) -> None:
        finished()
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as caught:  # noqa: BLE001 - handed to the caller below
            # An exit or interrupt raised by a listener must not end the kernel.
            error = caught if isinstance(caught, Exception) else RuntimeError(f"raised {caught!r}")
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            finished()

    threading.Thread(target=run, name="ovms-hook", daemon=True).start()
    return await future


def merge(patches: Iterable[tuple[str, Mapping[str, Any]]], what: str) -> dict[str, Any]:
    """Join what several extensions set; an entry that two of them set differently is an error that names both.

    :raises Refused: two extensions contradict each other.
    """
    values: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for extension, patch in patches:
        for key, value in patch.items():
            if key in values and values[key] != value:
                raise Refused(
                    f"Extensions {owners[key]} and {extension} both set {what} {key}; disable one of them by setting."
                )
            values[key] = value
            owners[key] = extension
    return values
