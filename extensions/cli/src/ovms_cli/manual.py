"""The manual page, made of what ``--help`` says: ``python -m ovms_cli.manual`` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperArgument, TyperOption

from ovms_cli.usage import operand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer._click import Command, Context

EVERYWHERE = ("data_dir", "debug", "help")
"""Options that all commands have; they are explained once."""
CODES = """\
0 done; 1 it failed; 2 the words, the input or a setting are wrong; 3 there is no such model, service, version or file;
4 the engine or the hub cannot be used; 5 other credentials are needed; 6 it took too long; 7 nothing installed offers
that; 130 Ctrl\\-C."""


def manual(command: Any) -> str:  # noqa: ANN401 - typer's group of commands
    """Return the page in man's macros.

    :param command: the program with all its commands.
    """
    context = command.make_context("ovms-plugin", ["--help"], resilient_parsing=True)
    lines = [
        ".TH OVMS-PLUGIN 1",
        ".SH NAME",
        "ovms-plugin \\- serve AI models on this machine through OpenVINO Model Server",
        ".SH SYNOPSIS",
        ".B ovms-plugin",
        "COMMAND [OPTIONS] [ARGS]",
        ".SH DESCRIPTION",
        _text(command.help),
        ".SH COMMANDS",
    ]
    for name, each in command.commands.items():
        lines += _described(name, each, context)
    lines += [".SH OPTIONS OF EVERY COMMAND"]
    some = next(each for each in command.commands.values() if not hasattr(each, "commands"))
    lines += _options(some, context, only=EVERYWHERE)
    lines += [".SH EXIT STATUS", CODES, ".SH FILES", ".TP", "config.yaml", "Settings, in the data folder."]
    lines += [".TP", "logs/engine.log, logs/serve.log", "What the engine and a server in the background say."]
    return "\n".join(lines) + "\n"


def _described(name: str, command: Command, context: Context) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is not None:
        for key, each in inner.items():
            yield from _described(f"{name} {key}", each, context)
        return
    operands = [operand(each) for each in command.params if isinstance(each, TyperArgument)]
    yield f".SS {_text(' '.join([name, *operands]))}"
    yield _text(" ".join((command.help or "").split()))
    for each in command.params:
        if isinstance(each, TyperArgument) and each.help:
            yield from (".TP", f".I {_text(each.metavar or '')}", _text(each.help))
    yield from _options(command, context, without=EVERYWHERE)


def _options(
    command: Command, context: Context, *, only: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Iterator[str]:
    for each in command.get_params(context):
        if isinstance(each, TyperOption) and each.name not in without and (not only or each.name in only):
            record = each.get_help_record(context)
            if record:
                yield from (".TP", f".B {_text(record[0])}", _text(record[1]))


def _text(text: str | None) -> str:
    """Return a text in which man sees no macros of its own."""
    escaped = (text or "").replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


if __name__ == "__main__":
    from ovms_cli.app import make_command

    print(manual(make_command()), end="")
