"""How a command explains itself, and what is said to words that it does not understand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.core import TyperArgument, TyperCommand, TyperOption

if TYPE_CHECKING:
    from typer._click import ClickException, Context, HelpFormatter


class PlainCommand(TyperCommand):
    """A command whose help names what it takes in the command's own words, not in those of Python's types."""

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the words after the command's name: ``MODEL`` has to be there, ``[TEXT]...`` need not."""
        operands = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        return ["[OPTIONS]", *map(operand, operands)]

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write what the operands and the options are."""
        parameters = self.get_params(ctx)
        operands = [(each.metavar or "", each.help or "") for each in parameters if isinstance(each, TyperArgument)]
        options = [each.get_help_record(ctx) for each in parameters if isinstance(each, TyperOption)]
        for title, rows in (("Arguments", operands), ("Options", [each for each in options if each])):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def operand(argument: TyperArgument) -> str:
    """Return an operand as usage shows it."""
    name = argument.metavar if argument.required else f"[{argument.metavar}]"
    return f"{name}..." if argument.nargs != 1 else f"{name}"


def told(error: ClickException) -> int:
    """Say in a sentence what is wrong with what was typed, and return the exit code."""
    from ovms_kernel.api.commands import say

    context = getattr(error, "ctx", None)
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    if kind == "NoSuchOption" and context is not None and context.parent is None:
        option = getattr(error, "option_name", "")
        if option == "--data-dir":
            option = "--data-dir DIR"
        where = f"`{context.command_path} ls {option}`"
        say(f"No option {option} stands before the command; type it behind, such as {where}.")
        return error.exit_code
    text = error.format_message().strip().removesuffix(".").replace(". Did you", "; did you")
    text = text.replace("Value error, ", "")
    if context is not None and kind == "MissingParameter":
        text += f"; usage: {context.command_path} {' '.join(context.command.collect_usage_pieces(context))}"
    elif context is not None and not text.endswith("?"):
        text += f"; `{context.command_path} --help` shows what there is"
    say(text if text.endswith(("?", ".")) else f"{text}.")
    return error.exit_code
