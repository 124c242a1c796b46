from collections.abc import Mapping
from typing import Any

import typer

from ovms_kernel.api.commands import Session


class Count:
    def __init__(self, section: Mapping[str, Any]) -> None:
        self.app = typer.Typer()
        self.app.command()(count)


async def count(session: Session) -> None:
    """Count the models on this machine."""
    async with session.kernel() as kernel:
        print(len(await kernel.list_models()))
