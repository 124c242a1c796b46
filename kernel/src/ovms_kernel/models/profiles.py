"""Profiles: aliases with a device, a context or options of their own, which the engine loads beside their model.

The folder of a profile holds the model's files as links, so that its weights are on disk once, and a graph of its own.
Its context stands in its ``config.json``, where engines read how many tokens a model takes.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ovms_kernel.errors import BadRequest, PreconditionFailed
from ovms_kernel.files import read_json, rename, write_atomically
from ovms_kernel.models.model_card import CONFIG, LENGTHS, context_length
from ovms_kernel.models.model_record import RECORD, read_record, write_record
from ovms_kernel.models.staging import TRASH, discard_profile, profile_folder
from ovms_kernel.values import Profile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ovms_kernel.models.model_record import ModelRecord
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host, LocalModel

DEVICES = ("CPU", "GPU", "NPU")
SEVERAL = ("AUTO", "HETERO", "MULTI")
"""Names that may have a list of devices after a colon, such as ``AUTO:GPU,CPU``."""


def profile_of(settings: Settings, name: str) -> Profile | None:
    """Return the profile of that name; ``None`` if the settings have none."""
    alias = settings.aliases.get(name)
    if alias is None or not alias.is_profile:
        return None
    return Profile(alias.model, alias.device, alias.context, alias.options)


def as_model(settings: Settings, name: str, profile: Profile, base: LocalModel) -> LocalModel:
    """Return a profile as the model that clients see; its files are its model's until its own folder is made."""
    folder = profile_folder(settings, name)
    directory = folder if (folder / RECORD).exists() else base.directory
    return replace(base, id=name, directory=directory, alias_of=base.id, profile=profile)


def all_of(settings: Settings, models: Sequence[LocalModel]) -> list[LocalModel]:
    """Return the profiles of those models, as the settings have them."""
    known = {each.id: each for each in models}
    named = ((name, profile_of(settings, name)) for name in settings.aliases)
    return [as_model(settings, name, it, known[it.model]) for name, it in named if it and it.model in known]


def check(profile: Profile, base: LocalModel, host: Host) -> None:
    """Refuse a device that is none, or a context that the model does not have.

    :raises BadRequest: the sentence says what it may be.
    """
    if profile.device:
        _check_device(profile.device, host)
    if profile.context:
        most = context_length(base.directory)
        if most is None:
            raise BadRequest(
                f"{base.id} does not say how many tokens it takes, so no context can be set for it; leave it out."
            )
        if profile.context > most:
            raise BadRequest(f"The context {profile.context} is too large: {base.id} takes {most} tokens at most.")


def _check_device(device: str, host: Host) -> None:
    kind, colon, rest = device.partition(":")
    named = [kind] if kind not in SEVERAL else rest.split(",") if colon else []
    for each in named:
        name = each.split(".")[0]
        if name not in DEVICES or (colon and kind not in SEVERAL):
            raise BadRequest(f"{device!r} is not a device; use CPU, GPU, NPU, or several such as AUTO:GPU,CPU.")
        # What other systems show of their devices is not all that they have.
        if sys.platform == "linux" and name not in host.devices:
            raise BadRequest(f"This machine shows no {name}; it has {', '.join(host.devices)}.")


def make(settings: Settings, name: str, profile: Profile, source: Path, record: ModelRecord) -> Path:
    """Make a profile's folder, or bring it up to date with its model and its context; return it.

    The caller holds the model's lock.

    :param source: the model's folder.
    :param record: the model's.
    :raises PreconditionFailed: the file system has no links.
    """
    folder = profile_folder(settings, name)
    known = read_record(folder)
    if known is None or (known.id, known.files) != (record.id, record.files):
        discard_profile(settings, name)
        # What a killed process leaves is trash by its name, which the next start empties.
        partial = settings.staging_dir / f"{TRASH}{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        for path in record.files:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            _link(source / path, partial / path)
        # Under the model's own id, by which the folders of a model that is removed are found.
        write_record(partial, replace(record, graph="", pinned=False, keep=None, load_bytes=0, problem=""))
        settings.profiles_dir.mkdir(exist_ok=True)
        rename(partial, folder)
    if CONFIG in record.files:
        _write_context(source / CONFIG, folder / CONFIG, profile.context)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        try:
            # The owner's folder may be on another disk.
            target.symlink_to(source.absolute())
        except OSError as error:
            raise PreconditionFailed(
                f"{target.parent} cannot hold links to a model's files ({error.strerror}), which a profile needs; "
                "keep the models on a disk that has links."
            ) from error


def _write_context(source: Path, target: Path, context: int) -> None:
    data = source.read_bytes()
    config = read_json(source) or {}
    if context and config:
        for table in (config, config.get("text_config")):
            if isinstance(table, dict):
                table |= {name: context for name in LENGTHS if isinstance(table.get(name), int)}
        if not any(name in config for name in LENGTHS):
            config[LENGTHS[0]] = context  # engines look at the top alone
        data = json.dumps(config, ensure_ascii=False, indent=2).encode()
    if target.read_bytes() != data:
        write_atomically(target, data)
