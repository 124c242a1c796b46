"""The lifecycle events. Every hook is ``ovms_<verb>_<noun>``; arguments come by keyword and are frozen values.

The verb says what happens when an implementation raises: ``before`` and ``amend`` may veto by raising ``Refused``; any
other error, and every error in another hook, is reported under the extension's name and stops nothing. Implementations
may be ``async def``; a synchronous one runs in a thread of its own. They run one after another, sorted by kind and
name, with a time limit each; ``ovms_kernel_stopping`` runs in reverse order. Progress and tokens are streams, not
hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import pluggy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from ovms_kernel.drivers import GraphOptions, GraphPatch
    from ovms_kernel.values import (
        Call,
        EngineExit,
        EngineInfo,
        Finding,
        Host,
        Installation,
        LaunchPatch,
        LaunchPlan,
        LoadedModel,
        LocalModel,
        ModelRef,
        Outcome,
        PullPlan,
        Release,
    )

F = TypeVar("F", bound="Callable[..., Any]")

hookspec = pluggy.HookspecMarker("ovms")
_hookimpl = pluggy.HookimplMarker("ovms")


@overload
def hookimpl(function: F, /) -> F: ...
@overload
def hookimpl(*, optional: bool = False) -> Callable[[F], F]: ...


def hookimpl(function: Any = None, /, *, optional: bool = False) -> Any:
    """Mark a method as the implementation of the hook of its name.

    :param optional: a kernel that does not know the hook, or an argument of it, never calls it; otherwise such an
        implementation costs its whole extension.
    """
    if function is None:
        return _hookimpl(optionalhook=optional)
    return _hookimpl(function)


# -- the kernel ----------------------------------------------------------------------------------------------------


@hookspec
def ovms_kernel_started(extensions: Sequence[Any]) -> None:
    """All extensions are composed, nothing is served yet. ``extensions`` are the ``ExtensionReport`` records."""


@hookspec
def ovms_kernel_stopping(reason: str) -> None:
    """The kernel is about to stop the engine; requests are no longer admitted."""


# -- the engine ----------------------------------------------------------------------------------------------------


@hookspec
def ovms_check_host(host: Host) -> Iterable[Finding] | Awaitable[Iterable[Finding]] | None:
    """Doctor runs, or an install is about to begin: return what you find."""


@hookspec
def ovms_before_install(release: Release, target: Path) -> None:
    """The archive is chosen, nothing is written yet."""


@hookspec
def ovms_installed(installation: Installation) -> None:
    """The active version was switched to this one."""


@hookspec
def ovms_rolled_back(installation: Installation, cause: str) -> None:
    """A new version did not come up healthy; the active version was switched back to this one."""


@hookspec
def ovms_amend_launch(plan: LaunchPlan) -> LaunchPatch | Awaitable[LaunchPatch | None] | None:
    """Arguments and environment of the engine are built; return what to add."""


@hookspec
def ovms_engine_ready(engine: EngineInfo) -> None:
    """REST and gRPC answer."""


@hookspec
def ovms_engine_exited(exit: EngineExit, will_restart: bool) -> None:  # noqa: A002, FBT001 - the event's own word
    """The engine process ended, for whatever reason."""


# -- models --------------------------------------------------------------------------------------------------------


@hookspec
def ovms_before_pull(model: ModelRef, plan: PullPlan) -> None:
    """Files and bytes are known, nothing is fetched yet."""


@hookspec
def ovms_before_replace(model: LocalModel) -> None:
    """The files of an installed model are about to be replaced or removed: stop using them."""


@hookspec
def ovms_pulled(model: LocalModel) -> None:
    """The model is verified and published."""


@hookspec
def ovms_deleted(model: LocalModel) -> None:
    """The model is gone from disk."""


@hookspec
def ovms_amend_graph(model: LocalModel, options: GraphOptions) -> GraphPatch | Awaitable[GraphPatch | None] | None:
    """``graph.pbtxt`` is about to be written; return calculator options to set."""


@hookspec
def ovms_model_ready(model: LoadedModel) -> None:
    """The engine serves the model."""


@hookspec
def ovms_model_suspect(model: LocalModel, device: str, cause: str) -> None:
    """The model answers nonsense on that device; ``cause`` says what, as the end of a sentence."""


@hookspec
def ovms_load_failed(model: LocalModel, cause: str) -> None:
    """The engine could not load the model and its entry was taken out again."""


@hookspec
def ovms_unloaded(model: LocalModel, reason: str) -> None:
    """The engine no longer serves the model."""


# -- requests ------------------------------------------------------------------------------------------------------


@hookspec
def ovms_before_request(call: Call) -> None:
    """A request was admitted and is about to reach its service; a session is one request, with an empty body."""


@hookspec
def ovms_request_finished(call: Call, outcome: Outcome) -> None:
    """The last byte was sent, or the request failed or was cancelled."""
