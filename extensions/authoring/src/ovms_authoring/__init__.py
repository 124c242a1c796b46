"""The command ``ovms-plugin extension``, for those who write extensions and those who install them."""

from __future__ import annotations


class Extension:
    """``ovms-plugin extension``, a group of commands."""

    def __init__(self) -> None:
        import typer

        from ovms_authoring import commands

        self.app = typer.Typer(help="Write, check, list, install and remove extensions.")
        for each in (commands.new, commands.check, commands.available, commands.install, commands.remove):
            self.app.command("list" if each is commands.available else each.__name__)(each)
