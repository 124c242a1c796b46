"""Words that people bring from other programs: each does what was meant, or says in a sentence what does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer._click import HelpFormatter
    from typer._click.core import Command, Context

COMMANDS = {
    "chatting": {
        "run": "Chat with a model, or ask it one question; pull it first if needed.",
        "chat": "Chat with the default model, or ask it one question.",
    },
    "fetching": {
        "search": "Search a hub for models.",
        "pull": "Download models from a hub.",
        "import": "Import a model from a folder or archive.",
    },
    "disk": {
        "ls": "List the models on this machine.",
        "show": "Show the details of a model.",
        "verify": "Check models for missing and changed files.",
        "df": "Show the disk space that models, pulls and engines use.",
    },
    "models": {
        "rm": "Delete models from this machine.",
        "load": "Load models into the running engine.",
        "unload": "Unload models from the running engine.",
        "pin": "Keep models loaded until you unpin or unload them.",
        "unpin": "Allow pinned models to be unloaded again.",
        "ps": "List the loaded models and when each unloads.",
    },
    "naming": {"alias": "Give a model another name, with its own settings."},
    "passports": {"passport": "Show with which engine, device and driver a model answers correctly."},
    "people": {
        "transcribe": "Transcribe a recording or live speech.",
        "say": "Turn text into a sound file.",
        "imagine": "Generate an image.",
        "embed": "Print an embedding for each text, as one line of JSON.",
        "rerank": "Rank texts by how well they match a query.",
    },
    "services": {"call": "Send a JSON request to a service and print the answer."},
    "stopping": {
        "stop": "Stop the server of this data folder.",
        "restart": "Stop the server and start it again in the background.",
    },
    "engines": {
        "status": "Show whether the engine runs, where, and what it serves.",
        "logs": "Print the engine's log.",
        "engine": "Install, choose and remove engine versions.",
    },
    "configuration": {"config": "Show and change settings."},
    "autostart": {"service": "Start `serve` when you log in."},
    "benchmark": {"bench": "Measure how fast a model answers."},
    "about": {
        "doctor": "Check this machine and suggest fixes.",
        "extensions": "List the extensions, with the reason if one is not used.",
    },
    "completing": {"completion": "Print the completion script for a shell."},
}
"""The commands of this package by module, each with the first line of its help: help imports no module for them."""

ALIASES = {
    "list": "ls",
    "models": "ls",
    "delete": "rm",
    "remove": "rm",
    "download": "pull",
    "get": "pull",
    "start": "serve",
    "server": "serve",
    "up": "serve",
    "info": "show",
    "inspect": "show",
    "find": "search",
    "benchmark": "bench",
    "speak": "say",
    "tts": "say",
    "image": "imagine",
    "paint": "imagine",
    "stt": "transcribe",
    "ask": "chat",
    "daemon": "serve",
    "kill": "stop",
    "shutdown": "stop",
    "reload": "restart",
    "unalias": "alias",
    "copy": "alias",
    "settings": "config",
    "completions": "completion",
    "keys": "key",
    "log": "logs",
    "speech": "say",
    "embeddings": "embed",
    "containers": "ps",
    "clone": "pull",
    "client": "chat",
    "runtime": "engine",
    "backends": "engine",
}
"""Commands by the names that other programs give them."""
PAIRS: dict[tuple[str, ...], list[str]] = {
    ("server", "start"): ["serve", "--detach"],
    ("server", "stop"): ["stop"],
    ("server", "restart"): ["restart"],
    ("server", "status"): ["status"],
    ("daemon", "up"): ["serve", "--detach"],
    ("daemon", "down"): ["stop"],
    ("daemon", "status"): ["status"],
    ("log", "stream"): ["logs", "--follow"],
    ("runtime", "update"): ["engine", "upgrade"],
    ("backends", "list"): ["engine", "ls"],
}
"""What two words of another program's stand for."""
TOKENS = "Tokens are settings: `ovms-plugin config {} hubs.modelscope.token{}`."
SERVES_ALL = (
    "`serve` takes no model: it serves every installed one, which the first request loads; "
    "`ovms-plugin run MODEL` asks one, and `ovms-plugin load MODEL` loads one beforehand."
)
HINTS = {
    "create": "Models are not built here; `ovms-plugin import FOLDER OWNER/NAME` imports one, and `ovms-plugin "
    "alias NAME MODEL --system TEXT` gives one another name and a system prompt.",
    "push": "Models are not uploaded; use the client of your hub.",
    "convert": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "quantize": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "export": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "login": TOKENS.format("set", " TOKEN"),
    "signin": TOKENS.format("set", " TOKEN"),
    "logout": TOKENS.format("unset", ""),
    "signout": TOKENS.format("unset", ""),
    "launch": "`ovms-plugin connect` shows what another program needs to use the models.",
    "recipes": "`ovms-plugin engine ls` lists engines, `ovms-plugin extensions` what else is installed.",
    "perplexity": "`ovms-plugin bench MODEL` measures speed; optimum-cli and lm-eval measure how good a model is.",
    "rag": "`ovms-plugin embed` and `ovms-plugin rerank` find texts; a program such as Open WebUI puts them together.",
    "bootstrap": "`ovms-plugin completion SHELL` is for your shell, `ovms-plugin service install` for each login.",
    "dev": "`ovms-plugin extension new` writes an extension.",
    "update": "Engines are updated by `ovms-plugin engine upgrade`, models by `ovms-plugin pull --refresh MODEL`.",
    "upgrade": "Engines are updated by `ovms-plugin engine upgrade`, models by `ovms-plugin pull --refresh MODEL`.",
    "cp": "Models are not copied; `ovms-plugin alias NAME MODEL` gives one another name.",
    "exit": "There is nothing to leave; /bye ends a conversation, `ovms-plugin stop` stops the server.",
    "quit": "There is nothing to leave; /bye ends a conversation, `ovms-plugin stop` stops the server.",
    "install": "`ovms-plugin pull MODEL` fetches a model, `ovms-plugin engine install` an engine.",
    "uninstall": "`ovms-plugin rm MODEL` deletes a model, `ovms-plugin service uninstall` ends the start at login.",
    "prune": "`ovms-plugin df` shows what is here, `ovms-plugin rm MODEL` deletes a model.",
}
"""What to do instead, by what was typed."""


def translated(arguments: list[str]) -> list[str]:
    """Return what was typed with another program's two words replaced by those that are meant."""
    return [*PAIRS.get(tuple(arguments[:2]), arguments[:2]), *arguments[2:]]


def behind(arguments: list[str]) -> list[str]:
    """Return what was typed with the options that all commands take put behind the command, where it reads them."""
    moved: list[str] = []
    rest = list(arguments)
    while rest and (rest[0] == "--debug" or rest[0].partition("=")[0] == "--data-dir"):
        taken = 2 if rest[0] == "--data-dir" else 1
        moved, rest = [*moved, *rest[:taken]], rest[taken:]
    if not moved or not rest or rest[0].startswith("-"):
        return arguments
    end = rest.index("--") if "--" in rest else len(rest)
    return [*rest[:end], *moved, *rest[end:]]


def meant(word: str) -> str:
    """Return the command that a word means, as far as it is another program's."""
    return ALIASES.get(word, word)


def _first_lines() -> Iterator[tuple[str, str]]:
    """Yield the commands of extensions, each with the first sentence of its help.

    They are made without settings, which help must not depend on, and not examined further, which takes time.
    """
    from importlib import metadata

    from ovms_kernel.api.commands import construct, offered_commands

    for each in sorted(metadata.entry_points(group="ovms.commands"), key=lambda each: each.name):
        try:
            app = construct(each.load(), {}).app
            single = app.registered_commands[0] if len(app.registered_commands) == 1 else None
            text = single.help or single.callback.__doc__ if single else app.info.help
            yield each.name, " ".join((text or "").strip().partition("\n\n")[0].split()).partition(". ")[0]
        except Exception:  # noqa: BLE001 - this is another's code
            offered_commands([each.name])  # says what is wrong with it


class Verbs(TyperGroup):
    """The group of all commands, which understands other programs' words too."""

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return the command that a word means; ``None`` if nothing does."""
        if found := super().get_command(ctx, cmd_name):
            return found
        if cmd_name in HINTS:
            from ovms_kernel.api.commands import say

            say(HINTS[cmd_name])
            ctx.exit(2)
        return super().get_command(ctx, meant(cmd_name))

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - as its base has it
        """Write every command with the first line of its help."""
        rows = {name: told for names in COMMANDS.values() for name, told in names.items()}
        rows |= {name: first for name, first in _first_lines() if name not in rows}
        with formatter.section("Commands"):
            formatter.write_dl(list(rows.items()))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read ``help COMMAND`` as ``COMMAND --help``, and ``version`` as ``--version``."""
        if args[:1] == ["help"]:
            args = [*(meant(each) for each in args[1:2]), "--help"]
        elif args == ["version"]:
            args = ["--version"]
        elif len(args) > 1 and meant(args[0]) == "serve" and not args[1].startswith("-"):
            from ovms_kernel.api.commands import say

            say(SERVES_ALL)
            ctx.exit(2)
        return super().parse_args(ctx, args)
