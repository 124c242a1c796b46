"""Words that people bring from other programs: each does what was meant, or says in a sentence what does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Command, Context

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
}
"""Commands by the names that other programs give them."""
HINTS = {
    "create": "Models are not built here; `ovms-plugin import FOLDER OWNER/NAME` takes one in, and `ovms-plugin "
    "alias NAME MODEL --system TEXT` gives one another name and a system text.",
    "push": "Models are not uploaded; use the client of your hub.",
    "convert": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "quantize": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "export": "Models are not converted here; optimum-cli does that, and `ovms-plugin import` copies the result.",
    "login": "Tokens are settings: `ovms-plugin config set hubs.modelscope.token TOKEN`.",
    "logout": "Tokens are settings: `ovms-plugin config unset hubs.modelscope.token`.",
    "update": "Engines are updated by `ovms-plugin engine upgrade`, models by `ovms-plugin pull --refresh MODEL`.",
    "upgrade": "Engines are updated by `ovms-plugin engine upgrade`, models by `ovms-plugin pull --refresh MODEL`.",
    "prune": "`ovms-plugin df` shows what is here, `ovms-plugin rm MODEL` deletes a model.",
}
"""What to do instead, by what was typed."""


def meant(word: str) -> str:
    """Return the command that a word means, as far as it is another program's."""
    return ALIASES.get(word, word)


class Verbs(TyperGroup):
    """The group of all commands, which understands other programs' words too."""

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return the command that a word means; ``None`` if nothing does."""
        if found := super().get_command(ctx, cmd_name):
            return found
        if cmd_name in HINTS:
            from ovms_kernel.commands import say

            say(HINTS[cmd_name])
            ctx.exit(2)
        return super().get_command(ctx, meant(cmd_name))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read ``help COMMAND`` as ``COMMAND --help``, and ``version`` as ``--version``."""
        if args[:1] == ["help"]:
            args = [*(meant(each) for each in args[1:2]), "--help"]
        elif args == ["version"]:
            args = ["--version"]
        return super().parse_args(ctx, args)
