"""What the author of a command of ``ovms-plugin`` imports.

A command is an entry point of the group ``ovms.commands``, named as the command. Like every driver it is constructed
with its section of the settings; its ``app`` is a ``typer.Typer`` whose coroutine functions get a :class:`Session` as
their first argument. The command line adds ``--data-dir`` and ``--debug``, handles signals, and turns an
:class:`OvmsError` into one sentence and an exit code.
"""

from __future__ import annotations

from ovms_kernel.commands import EXIT_CODES, Session, need_engine, plain, print_json, run_command, running, say
from ovms_kernel.drivers import Command
from ovms_kernel.errors import (
    BadRequest,
    Cancelled,
    EngineFailed,
    NotFound,
    NotSupported,
    OvmsError,
    PreconditionFailed,
    Refused,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.server import RunningServer, read_server, refuse_second

__all__ = [
    "EXIT_CODES",
    "BadRequest",
    "Cancelled",
    "Command",
    "EngineFailed",
    "NotFound",
    "NotSupported",
    "OvmsError",
    "PreconditionFailed",
    "Refused",
    "RunningServer",
    "Session",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "hookimpl",
    "need_engine",
    "plain",
    "print_json",
    "read_server",
    "refuse_second",
    "run_command",
    "running",
    "say",
]
