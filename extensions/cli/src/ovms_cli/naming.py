"""``alias``: further names of installed models, with settings of their own."""

from typing import Annotated, Any

import typer

from ovms_cli import output
from ovms_cli.completing import installed
from ovms_cli.configuration import changing, read_tree, tell_server
from ovms_cli.keys import Key
from ovms_cli.session import Json, Session, add
from ovms_kernel.errors import BadRequest, NotFound
from ovms_kernel.models.names import parse_model_id


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, alias)


async def alias(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The further name.", show_default=False)] = "",
    model: Annotated[
        str, typer.Argument(metavar="MODEL", autocompletion=installed, help="An installed model.", show_default=False)
    ] = "",
    *,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System text of chats that bring none.", show_default=False)
    ] = "",
    fields: Annotated[
        list[str],
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of its requests, such as temperature=0.2."),
    ] = [],  # noqa: B006 - typer's way to say none or more
    remove_: Annotated[bool, typer.Option("--remove", help="Remove the name; the model stays.")] = False,
    json: Json = False,
) -> None:
    """Give a model another name, with settings of its own.

    Every client sees the name as a model. Alone, the command lists the names.
    """
    if not name:
        _list(session, json=json)
    elif remove_:
        await remove(session, name)
    elif not model:
        raise BadRequest(f"Name the model that {name} stands for: `ovms-plugin alias {name} MODEL`.")
    else:
        await _set(session, parse_model_id(name), model, system, dict(map(_field, fields)))


async def remove(session: Session, name: str) -> None:
    """Remove an alias from the config file.

    :raises NotFound: there is none of that name.
    """
    async with changing(session) as (file, tree):
        named = tree.get("aliases") or {}
        if name not in named:
            raise NotFound(f"There is no alias {name} in {file}; `ovms-plugin alias` lists them.")
        del named[name]
        if not named:
            del tree["aliases"]
    print(f"The alias {name} is removed.")
    tell_server(session, Key("", "", "aliases"))


async def _set(session: Session, name: str, model: str, system: str, request: dict[str, Any]) -> None:
    installed = [each.id for each in session.store().list()]
    if name in installed:
        raise BadRequest(f"{name} is an installed model; choose another name.")
    if model not in installed:
        raise NotFound(f"Model {model} is not installed; there are {', '.join(installed) or 'none'}.")
    given = {"model": model, "system": system, "request": request}
    async with changing(session) as (_, tree):
        if tree.get("aliases") is None:
            tree["aliases"] = {}
        tree["aliases"][name] = {key: value for key, value in given.items() if value}
        read_tree(session, tree)
    print(f"{name} is {model} now.")
    tell_server(session, Key("", "", "aliases"))


def _list(session: Session, *, json: bool) -> None:
    aliases = session.settings.aliases
    if json:
        output.print_json(dict(aliases))
    elif aliases:
        known = {each.id for each in session.store().list()}
        rows = [
            (
                name,
                each.model if each.model in known else f"{each.model} (not installed)",
                output.assignments(each.request) or "-",
                each.system or "-",
            )
            for name, each in aliases.items()
        ]
        output.print_table(("ALIAS", "MODEL", "REQUEST", "SYSTEM"), rows, clip="SYSTEM")
    else:
        output.say("There are no aliases; `ovms-plugin alias NAME MODEL` makes one.")


def _field(text: str) -> tuple[str, Any]:
    """Return the name and the value of a field, as they were typed.

    :raises BadRequest: it is no field.
    """
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadRequest(f"--set takes FIELD=VALUE, such as temperature=0.2, not {text!r}.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value
