"""Which installed model a request means: the one it names, else the default, else the only sensible one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_kernel.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ovms_kernel.models.plan import Resident
    from ovms_kernel.values import LocalModel


def choose(
    installed: Sequence[LocalModel], table: Mapping[str, Resident], name: str, model_type: str, default: str
) -> LocalModel | None:
    """Return the model for a request; ``None`` if it names one that is not installed.

    :param default: what is meant where no name is given, if it is installed.
    :raises NotFound: no name is given, and there is no or more than one model that could be meant.
    """
    if name:
        return next((each for each in installed if each.id == name), None)
    offered = [each for each in installed if each.model_type == model_type]
    if chosen := [each for each in offered if each.id == default]:
        return chosen[0]
    candidates = [each for each in offered if each.profile is None]
    if len(candidates) == 1:
        return candidates[0]
    used = [each for each in offered if each.id in table and table[each.id].last_used]
    if used:
        return max(used, key=lambda each: table[each.id].last_used)
    if default:
        raise not_installed(installed, default, model_type)
    found = f"several are ({_names(installed, model_type)})" if candidates else "none is"
    raise NotFound(
        f"The request names no model and {found} installed for {model_type}; "
        "name one, or pull one with `ovms-plugin pull <owner>/<name>`."
    )


def check_type(model: LocalModel, installed: Sequence[LocalModel], model_type: str) -> None:
    """Refuse a model that does something else than the request needs.

    :raises BadRequest: the sentence lists models that do.
    """
    if model.model_type != model_type:
        raise BadRequest(
            f"{model.id} is for {model.model_type} and this request needs a model for {model_type}; "
            f"name one of these: {_names(installed, model_type)}."
        )


def not_installed(installed: Sequence[LocalModel], name: str, model_type: str) -> NotFound:
    """Return the error for a model that is not here."""
    return NotFound(
        f"Model {name} is not installed; installed for {model_type}: {_names(installed, model_type)}. "
        f"Pull it with `ovms-plugin pull {name if '/' in name else '<owner>/<name>'}`."
    )


def _names(installed: Sequence[LocalModel], model_type: str) -> str:
    return ", ".join(each.id for each in installed if each.model_type == model_type) or "none"
