"""When a server that runs takes up settings that were changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_cli import output
from ovms_cli.keys import Key
from ovms_kernel.api.configuration import KINDS, TOP, ModelSettings, is_live, read_server

if TYPE_CHECKING:
    from ovms_cli.session import Session
    from ovms_kernel.api.configuration import Settings


def tell_server(session: Session, *keys: Key) -> None:
    """Say when a server that runs takes up changed settings."""
    if not keys or not read_server(session.settings.data_dir):
        return
    loads = {
        each.section for each in keys if each.kind == "models" and each.name not in ModelSettings.__struct_fields__
    }
    if later := [str(each) for each in keys if not is_live(each.kind, each.name)]:
        output.say(f"The running server uses {', '.join(later)} after `ovms-plugin restart`.")
    elif loads:
        output.say(
            f"The running server uses it when it next loads {', '.join(sorted(loads))}; "
            f"`ovms-plugin unload {min(loads)}` unloads it."
        )
    else:
        output.say("The running server uses it from now on.")


def changed(before: Settings, after: Settings) -> list[Key]:
    """Return the settings that differ."""
    found = [Key("", "", name) for name in TOP if getattr(before, name) != getattr(after, name)]
    for kind in KINDS:
        for section in {**before.sections.get(kind, {}), **after.sections.get(kind, {})}:
            old, new = before.section(kind, section), after.section(kind, section)
            found += [Key(kind, section, name) for name in {**old, **new} if old.get(name) != new.get(name)]
    return found
