"""``alias``: further names of installed models, with settings of their own."""

from contextlib import suppress
from typing import Annotated, Any

import typer

from ovms_cli import output
from ovms_cli.completing import installed
from ovms_cli.configuration import changing, check_profiles, read_tree
from ovms_cli.keys import Key
from ovms_cli.managing import library_of
from ovms_cli.session import Json, Session, add
from ovms_cli.uptake import tell_server
from ovms_kernel.api.commands import BadRequest, NotFound, Unavailable, parse_model_id
from ovms_kernel.api.configuration import AliasSettings

Fields = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="A field of its requests, such as temperature=0.2.")
]
Options = Annotated[
    list[str], typer.Option("--option", metavar="NAME=VALUE", help="An option of its graph, such as cache_size=2.")
]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    add(app, alias)


async def alias(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.", show_default=False)] = "",
    model: Annotated[
        str, typer.Argument(metavar="MODEL", autocompletion=installed, help="An installed model.", show_default=False)
    ] = "",
    *,
    system: Annotated[
        str, typer.Option(metavar="TEXT", help="System prompt for chats without one.", show_default=False)
    ] = "",
    fields: Fields = [],  # noqa: B006 - typer's way to say none or more
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Device to run on, such as GPU.", show_default=False)
    ] = "",
    context: Annotated[int, typer.Option(metavar="TOKENS", help="Context length in tokens.", show_default=False)] = 0,
    options: Options = [],  # noqa: B006
    remove_: Annotated[bool, typer.Option("--remove", help="Remove the name; the model stays.")] = False,
    json: Json = False,
) -> None:
    """Give a model another name, with its own settings.

    Every client sees the name as a model. With --device, --context or --option it is loaded
    beside the model, from the same files. Alone, the command lists the names.
    """
    if not name:
        _list(session, json=json)
    elif remove_:
        await remove(session, name)
    elif not model:
        raise BadRequest(f"Name the model that {name} stands for: `ovms-plugin alias {name} MODEL`.")
    else:
        request, own = (dict(_field(each) for each in given) for given in (fields, options))
        engine = {"device": device.upper(), "context": context, "options": own}
        await _set(session, parse_model_id(name), {"model": model, "system": system, "request": request} | engine)


async def remove(session: Session, name: str) -> None:
    """Remove an alias from the config file; a profile is unloaded first.

    :raises NotFound: there is none of that name.
    """
    old = session.settings.aliases.get(name)
    if old and old.is_profile:
        with suppress(NotFound, Unavailable):  # its model is gone, or nothing runs that could have loaded it
            async with library_of(session) as loader:
                await loader.unload(name)
    async with changing(session) as (file, tree):
        named = tree.get("aliases") or {}
        if name not in named:
            raise NotFound(f"There is no alias {name} in {file}; `ovms-plugin alias` lists them.")
        del named[name]
        if not named:
            del tree["aliases"]
    if old and old.is_profile:
        await session.store().discard_profile(name, old.model)
    print(f"The alias {name} is removed.")
    tell_server(session, Key("", "", "aliases"))


async def _set(session: Session, name: str, given: dict[str, Any]) -> None:
    installed, model = [each.id for each in session.store().list()], given["model"]
    if name in installed:
        raise BadRequest(f"{name} is an installed model; choose another name.")
    if model not in installed:
        raise NotFound(f"Model {model} is not installed; there are {', '.join(installed) or 'none'}.")
    async with changing(session) as (_, tree):
        if tree.get("aliases") is None:
            tree["aliases"] = {}
        tree["aliases"][name] = {key: value for key, value in given.items() if value}
        await check_profiles(session, read_tree(session, tree), name)
    print(f"{name} now stands for {model}.")
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
                output.assignments(own_of(each)) or "-",
                output.assignments(each.request) or "-",
                each.system or "-",
            )
            for name, each in aliases.items()
        ]
        output.print_table(("ALIAS", "MODEL", "OPTIONS", "REQUEST", "SYSTEM"), rows, clip="SYSTEM")
    else:
        output.say("There are no aliases; `ovms-plugin alias NAME MODEL` makes one.")


def own_of(alias: AliasSettings) -> dict[str, Any]:
    """Return what an alias has of its own in the engine, by name; empty if it is no profile."""
    named = {"device": alias.device, "context": alias.context}
    return {name: value for name, value in named.items() if value} | dict(alias.options)


def _field(text: str) -> tuple[str, Any]:
    """Return the name and the value of a field, as they were typed.

    :raises BadRequest: it is no field.
    """
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BadRequest(f"--set and --option take NAME=VALUE, such as temperature=0.2, not {text!r}.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value
