"""``ovms-plugin config``: what is set, and changing it in the config file."""

import io
import json as json_
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
import typer

from ovms_cli import output
from ovms_cli.completing import declared
from ovms_cli.keys import Key, declared_keys, driver_of, locate, split, type_of
from ovms_cli.session import Json, Session, add
from ovms_cli.uptake import changed, tell_server
from ovms_kernel.api.administration import check_options, check_profile, find_model
from ovms_kernel.api.configuration import (
    ELSEWHERE,
    KINDS,
    PREFIX,
    TOP,
    AliasSettings,
    BadRequest,
    ModelSettings,
    NotFound,
    OvmsError,
    Settings,
    config_file,
    locked,
    profile_of,
    read_config,
    read_settings,
    settings_for,
    write_atomically,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        autocompletion=declared,
        help="Such as rest_port or services.chat.default_model.",
        show_default=False,
    ),
]
SECRETS = ("token", "key", "password")
"""Ends of names whose values are not listed."""
EDITORS = ("nano", "vi", "notepad")
"""Tried in this order where neither VISUAL nor EDITOR names one."""


def add_to(app: typer.Typer) -> None:
    """Add the group ``config``."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and change settings.")
    add(group, list_, get, set_, unset, path, edit)
    app.add_typer(group, name="config")


def list_(
    session: Session,
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Include settings that are not set, each with its meaning.")
    ] = False,
    json: Json = False,
) -> None:
    """List what is set, and where."""
    places = _set_here(session.settings)
    keys = declared_keys() if everything else {}
    keys = keys | {each: keys.get(each, "") for each in places}
    found = {str(key): _value(session.settings, key) for key in keys}
    if json:
        output.print_json({name: _plain(value) for name, value in found.items()})
        return
    if not found:
        output.say("Nothing is set; `ovms-plugin config list --all` shows what can be.")
    width = min(shutil.get_terminal_size().columns, 100)
    for key, help_ in keys.items():
        place = "   (environment)" if places.get(key) == "environment" else ""
        print(f"{key} = {_listed(key, found[str(key)])}".rstrip() + place)
        if help_:
            print(textwrap.fill(help_, width, initial_indent="    ", subsequent_indent="    "))


def get(session: Session, key: Name, *, json: Json = False) -> None:
    """Print the value of a setting, the default if it is not set."""
    value = _value(session.settings, locate(key))
    if json:
        output.print_json(_plain(value))
    else:
        print(_shown(value))


async def set_(
    session: Session,
    key: Name,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="A list is written a,b; a table as JSON.", show_default=False)
    ],
) -> None:
    """Set a setting in the config file; a wrong name or value changes nothing."""
    where = locate(key)
    async with changing(session) as (file, tree):
        table = _table(tree, where)
        table[where.name] = _parsed(where, value)
        settings = read_tree(session, tree)
        _check_section(settings, where.kind, where.section)
        table[where.name] = _plain(_value(settings, where))
        await _check_model(session, settings, where)
        if where == Key("", "", "aliases"):
            await check_profiles(session, settings)
    output.tell(f"{key} = {_listed(where, _value(settings, where))}, in {file}.")
    tell_server(session, where)


async def unset(session: Session, key: Name) -> None:
    """Remove a setting from the config file, so that its default holds again."""
    where = split(key)
    removed = False
    async with changing(session) as (file, tree):
        tables: list[tuple[MutableMapping[str, Any], str]] = []
        table: Any = tree
        for name in filter(None, where):
            found = _spelled(table, name) if isinstance(table, MutableMapping) else name
            if not isinstance(table, MutableMapping) or found not in table:
                break
            tables.append((table, found))
            table = table[found]
        else:
            removed = True
            for table, name in reversed(tables):
                del table[name]
                if table:
                    break
    if not removed:
        locate(key)
        print(f"{key} is not set in {file}.")
        return
    print(f"{key} is no longer set.")
    tell_server(session, where)


def path(session: Session) -> None:
    """Print the path of the config file, which need not exist."""
    print(config_file(os.environ, session.settings.data_dir))


async def edit(session: Session) -> None:
    """Open the config file in your editor; a mistake in it changes nothing."""
    editor = _editor()
    file = config_file(os.environ, session.settings.data_dir)
    draft = file.with_name(f"{file.name}.draft")
    if not draft.exists():  # else one with a mistake, to go on with
        old = file.read_bytes() if file.exists() else b"# See docs/settings.md, or `ovms-plugin config list --all`.\n"
        write_atomically(draft, old, 0o600)
    before, was = draft.read_bytes(), _read_or_default(session, file)
    session.kept = f"Interrupted; nothing was changed, your draft is {draft}."
    done = await anyio.to_thread.run_sync(lambda: subprocess.run([*editor, str(draft)], check=False))
    if done.returncode:
        raise OvmsError(f"The editor ended with {done.returncode}; nothing was changed, your draft is {draft}.")
    try:
        settings = read_tree(session, read_config(draft))
        for kind in KINDS:
            for name in settings.sections.get(kind, {}):
                _check_section(settings, kind, name)
        await check_profiles(session, settings)
    except BadRequest as error:
        raise BadRequest(
            f"{error.message} Nothing was changed; `ovms-plugin config edit` resumes your draft, {draft}."
        ) from error
    after = draft.read_bytes()
    if file.exists() or after != before:
        write_atomically(file.resolve(), after, _mode(file))
    draft.unlink()
    print("Nothing was changed." if after == before else f"{file} is changed.")
    tell_server(session, *changed(was, settings))


for each in (set_, unset, path, edit):
    setattr(each, "reads_config", False)  # noqa: B010 - functions have no such attribute, says mypy


def _read_or_default(session: Session, file: Path) -> Settings:
    """Return what a config file sets; nothing if it is wrong, as it may be opened to correct it."""
    try:
        return read_tree(session, read_config(file))
    except BadRequest:
        return read_tree(session, {})


def _check_section(settings: Settings, kind: str, name: str) -> None:
    """Read a section as its extension does.

    :raises BadRequest: a name or value in it is wrong.
    """
    if kind and kind != "models":
        settings_for(driver_of(kind, name), settings, kind, name)


async def _check_model(session: Session, settings: Settings, key: Key) -> None:
    """Build the graph of an installed model with its options, for errors in them.

    :raises BadRequest: an option is unknown or has a wrong value.
    """
    if key.kind != "models" or key.name in ModelSettings.__struct_fields__:
        return
    async with session.kernel() as kernel:
        try:
            model = find_model(kernel, key.section)
        except NotFound:
            output.say(f"{key.section} is not installed, so that {key.name} is checked when it is.")
            return
        section = settings.section("models", key.section)
        options = {name: value for name, value in section.items() if name not in ModelSettings.__struct_fields__}
        await check_options(kernel, model, options)


async def check_profiles(session: Session, settings: Settings, only: str = "") -> None:
    """Hold the profiles in the settings against their models and this machine.

    :param only: the name of one of them.
    :raises BadRequest: a device, a context or an option of one is wrong.
    """
    named = {name: profile_of(settings, name) for name in settings.aliases if only in ("", name)}
    if not any(named.values()):
        return
    async with session.kernel(kinds=["graphs"]) as kernel:
        for name, profile in named.items():
            try:
                if profile:
                    await check_profile(kernel, name, profile)
            except NotFound as error:
                output.say(f"The profile {name} cannot be checked: {error.message}")


def read_tree(session: Session, tree: Mapping[str, Any]) -> Settings:
    """Read what a config file would hold, as all commands do.

    :raises BadRequest: a name or value in it is wrong.
    """
    if "data_dir" in tree:
        raise BadRequest(f"data_dir cannot be set in the config file; {ELSEWHERE}.")
    return read_settings({}, file=_plain(tree), data_dir=session.settings.data_dir)


def _value(settings: Settings, key: Key) -> Any:  # noqa: ANN401 - of any setting
    """Return the value that holds, as its type."""
    if not key.kind:
        return getattr(settings, key.name)
    if key.kind == "models" and key.name in ModelSettings.__struct_fields__:
        return getattr(settings.model(key.section), key.name)
    declared = type_of(key.kind, key.section)
    if declared is dict:
        return settings.section(key.kind, key.section).get(key.name)
    return getattr(settings.read_section(key.kind, key.section, declared), key.name, None)


def _parsed(key: Key, text: str) -> Any:  # noqa: ANN401 - of any setting
    """Return what was typed: a text where its setting has a type that says how to read it, else as YAML."""
    import yaml

    typed = not key.kind or key.name in ModelSettings.__struct_fields__ or type_of(key.kind, key.section) is not dict
    if typed and not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadRequest(f"{text!r} cannot be read as a value ({' '.join(str(error).split())}).") from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - as YAML and JSON have it
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, AliasSettings):
        return {name: each for name, each in output.plain(value).items() if each}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return output.plain(value)


def _shown(value: Any) -> str:  # noqa: ANN401
    value = _plain(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    if isinstance(value, dict | list | bool):
        return json_.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def _listed(key: Key, value: Any) -> str:  # noqa: ANN401
    return "(hidden)" if value and key.name.endswith(SECRETS) else _shown(value)


def _set_here(settings: Settings) -> dict[Key, str]:
    """Return what is set, and where: ``file`` or ``environment``."""
    file = read_config(config_file(os.environ, settings.data_dir))
    found = {Key("", "", name): "file" for name in TOP if file.get(name) is not None}
    found |= {Key("", "", name): "environment" for name in TOP if PREFIX + name.upper() in os.environ}
    for kind, tables in settings.sections.items():
        for section, table in tables.items():
            spelled = _spelled(file.get(kind) or {}, section)
            if kind != "models":
                offered = metadata.entry_points(group=f"ovms.{kind}")
                spelled = next((each.name for each in offered if each.name.replace("-", "_") == section), "")
            for name in table if spelled else ():
                place = settings.places.get(f"{kind}.{section}.{name}", "")
                found[Key(kind, spelled, name)] = "environment" if place == "the environment" else "file"
    return found


def _spelled(table: Mapping[str, Any], name: str) -> str:
    """Return a name as a table has it, where dashes and underscores are one; as it is if the table lacks it."""
    if name in table:
        return name
    plain = name.replace("-", "_")
    return next((str(each) for each in table if str(each).replace("-", "_") == plain), name)


def _table(tree: MutableMapping[str, Any], key: Key) -> MutableMapping[str, Any]:
    """Return the table that a setting is in, made where it is missing."""
    table = tree
    for name in (key.kind, key.section) if key.kind else ():
        spelled = _spelled(table, name)
        if table.get(spelled) is None:
            table[spelled] = {}
        table = table[spelled]
        if not isinstance(table, MutableMapping):
            raise BadRequest(f"In the config file, {name} must be a table; `ovms-plugin config edit` opens it.")
    return table


@asynccontextmanager
async def changing(session: Session) -> AsyncIterator[tuple[Path, MutableMapping[str, Any]]]:
    """Give the config file's content, and write it with its comments at the end of the block, unless that fails."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = config_file(os.environ, session.settings.data_dir)
    async with locked(file.with_name(f".{file.name}.lock"), timeout=10, keep=lambda: False):
        if file.exists():
            read_config(file)  # in words, where it cannot be read
        yaml = YAML()
        yaml.preserve_quotes = True
        yaml.width = 10_000
        try:
            tree = yaml.load(file.read_bytes()) if file.exists() else {}
        except YAMLError as error:
            raise BadRequest(f"The config file {file} cannot be read ({' '.join(str(error).split())}).") from error
        tree = {} if tree is None else tree
        before = _plain(tree)
        yield file, tree
        if _plain(tree) == before:
            return
        text = io.StringIO()
        if tree:
            yaml.dump(tree, text)
        write_atomically(file.resolve(), text.getvalue().encode(), _mode(file))


def _mode(file: Path) -> int:
    # A new one is for its owner alone, because it may hold a token.
    return file.stat().st_mode & 0o777 if file.exists() else 0o600


def _editor() -> list[str]:
    if chosen := os.environ.get("VISUAL") or os.environ.get("EDITOR"):
        return shlex.split(chosen, posix=os.name != "nt")
    found = next((each for each in EDITORS if shutil.which(each)), None)
    if found is None or not sys.stdin.isatty():
        raise BadRequest("No editor is set; name one in EDITOR, or use `ovms-plugin config set KEY VALUE`.")
    return [found]
