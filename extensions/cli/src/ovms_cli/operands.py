"""What several commands take."""

from typing import Annotated

import typer

from ovms_cli.completing import installed

Model = Annotated[
    str, typer.Argument(metavar="MODEL", autocompletion=installed, help="As owner/name.", show_default=False)
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL", autocompletion=installed, help="One or more, as owner/name.", show_default=False),
]
