"""``ovms-plugin serve``, ``key`` and ``connect``.

The annotations are read at run time; everything heavy is imported by the command that runs, as help lists them all.
"""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ovms_face_http.clients import CLIENTS, Client, told
from ovms_kernel.api.commands import Session, print_json, say

if TYPE_CHECKING:
    from ovms_face_http.config import HttpSettings
    from ovms_kernel.api.faces import KernelApi

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.", show_default=False)]


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Serve:
    """``ovms-plugin serve``."""

    def __init__(self) -> None:
        self.app = typer.Typer()
        self.app.command()(serve)


class Connect:
    """``ovms-plugin connect``."""

    def __init__(self) -> None:
        self.app = typer.Typer()
        self.app.command()(connect)


class Key:
    """``ovms-plugin key``, a group."""

    def __init__(self) -> None:
        self.app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke API keys.")
        for name, command in (("add", add_), ("list", list_), ("remove", remove)):
            self.app.command(name)(command)


async def serve(
    session: Session,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.", show_default=False)] = "",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=-1, max=65535, help="Which port; 0 = any free one.", show_default=False)
    ] = -1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
) -> None:
    """Serve every installed model at one HTTP address until Ctrl-C.

    Other commands, and AOG, use the same engine meanwhile.
    """
    from ovms_kernel.api.commands import refuse_second

    refuse_second(session.settings.data_dir)  # before anything else, as the port may be in use for that reason
    if detach:
        from ovms_face_http.detached import detach as start

        await start(session)
        return
    from ovms_face_http.operation import STOPPED, operate

    given = ({"host": host} if host else {}) | ({"port": port} if port >= 0 else {})
    settings = read_settings(session, **given)
    session.kept = STOPPED
    async with session.kernel() as kernel:
        await operate(cast("KernelApi", kernel), settings, say)


serve.fast_loop = True  # type: ignore[attr-defined]


async def connect(
    session: Session,
    client: Annotated[
        Client | None,
        typer.Argument(
            metavar="CLIENT", help=f"One of {', '.join(CLIENTS)}; all if none is named.", show_default=False
        ),
    ] = None,
) -> None:
    """Show how to connect another program to the models."""
    import anyio.to_thread

    from ovms_face_http import config
    from ovms_face_http.keys import keys_of
    from ovms_kernel.api.commands import read_server

    settings = read_settings(session)
    where = read_server(session.settings.data_dir)
    models = session.list_models()
    url = where.url if where else config.base_url(settings, settings.port)
    key = ""
    if settings.keys == "required":
        key = await anyio.to_thread.run_sync(keys_of(session.settings).default)
    if where is None:
        say("No server is running; start one with `ovms-plugin serve`.")
    chosen = [each.value for each in Client] if client is None else [client.value]
    print("\n\n".join(told(each, url, key, models) for each in chosen))


async def add_(session: Session, name: Name) -> None:
    """Make a key and print it, this once; only a hash of it is kept."""
    import anyio.to_thread

    from ovms_face_http.keys import keys_of

    print(await anyio.to_thread.run_sync(keys_of(session.settings).add, name))


async def list_(session: Session, *, json: Json = False) -> None:
    """List the keys by name."""
    from ovms_face_http.keys import DEFAULT, keys_of

    keys = keys_of(session.settings)
    found = [{"name": name, "created": each.created} for name, each in sorted(keys.named().items())]
    if keys.file.exists():
        found.insert(0, {"name": DEFAULT, "file": str(keys.file)})
    if json:
        print_json(found)
    elif found:
        width = max(len(each["name"]) for each in found)
        for each in found:
            print(f"{each['name']:<{width}}   {each.get('created') or each.get('file', '')}")
    else:
        say("There are no keys yet; `ovms-plugin serve` makes one, `ovms-plugin key add NAME` another.")


async def remove(session: Session, name: Name) -> None:
    """Revoke a key; a running server refuses it within a second."""
    import anyio.to_thread

    from ovms_face_http.keys import keys_of

    await anyio.to_thread.run_sync(keys_of(session.settings).remove, name)
    print(f"The key {name} is revoked.")


def read_settings(session: Session, **given: object) -> "HttpSettings":
    """Return the face's settings, with options of a command that win over them."""
    from ovms_face_http import config

    return config.read({**session.settings.section("faces", "http"), **given})
