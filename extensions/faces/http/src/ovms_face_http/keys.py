"""The keys that programs send: one made once and kept for this user, and named ones of which only a hash is kept."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from ovms_kernel.api.faces import BadRequest, NotFound, OvmsError, patiently

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ovms_kernel.api.faces import Settings

PREFIX = "sk-ovms-"
DEFAULT = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOK = 1.0
"""Seconds between two looks at whether another process changed the keys."""


class NamedKey(msgspec.Struct, frozen=True):
    """What is kept of a key."""

    sha256: str
    """Hex digest of the key. A key has 256 random bits, so that a slow hash would add nothing."""
    created: str
    """ISO 8601, UTC."""


class Keys:
    """The keys of one data folder.

    :param folder: for this user only; made when the first key is.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "key"
        """Holds the key that ``connect`` shows; for this user only."""
        self._named_file = folder / "keys.json"
        self._known: Mapping[str, str] = {}
        self._seen: tuple[float, ...] = ()
        self._looked = -LOOK

    def default(self) -> str:
        """Return the key that is kept, made now if there is none yet."""
        try:
            found = patiently(self.file.read_bytes).decode("ascii").strip()
        except FileNotFoundError:
            found = ""
        except (OSError, UnicodeDecodeError) as error:
            raise OvmsError(f"The key file {self.file} cannot be read ({error}); fix or delete it.") from error
        if found:
            return found
        key = _new()
        try:
            _write(self.file, key.encode() + b"\n", exclusive=True)
        except FileExistsError:
            # Another process made it at the same moment, or it is empty.
            if kept := patiently(self.file.read_bytes).decode("ascii").strip():
                return kept
            _write(self.file, key.encode() + b"\n")
        return key

    def name_of(self, key: str) -> str | None:
        """Return the name of the key that a program sent; ``None`` if it is not one of these."""
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            self._refresh()
        return self._known.get(_hash(key))

    def add(self, name: str) -> str:
        """Make a key under a name and return it; it is shown this once."""
        if not NAME.fullmatch(name) or name == DEFAULT:
            raise BadRequest(f"{name!r} cannot name a key; use up to 64 letters, digits, dots and dashes.")
        named = self.named()
        if name in named:
            raise BadRequest(f"There is a key {name} already; remove it first, or choose another name.")
        key = _new()
        made = NamedKey(_hash(key), datetime.now(UTC).isoformat(timespec="seconds"))
        _write(self._named_file, msgspec.json.encode({**named, name: made}))
        return key

    def remove(self, name: str) -> None:
        """Revoke a key; a running server refuses it within a second.

        Removing the default key makes the next start write another one.
        """
        if name == DEFAULT:
            patiently(lambda: self.file.unlink(missing_ok=True))
            return
        named = self.named()
        if name not in named:
            there = ", ".join(sorted(named)) or "none"
            raise NotFound(f"There is no key {name}; keys: {there}.")
        del named[name]
        _write(self._named_file, msgspec.json.encode(named))

    def named(self) -> dict[str, NamedKey]:
        """Return the named keys."""
        try:
            return msgspec.json.decode(patiently(self._named_file.read_bytes), type=dict[str, NamedKey])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise OvmsError(f"The keys in {self._named_file} cannot be read ({error}); fix or delete it.") from error

    def _refresh(self) -> None:
        seen = tuple(_changed(each) for each in (self.file, self._named_file))
        if seen == self._seen:
            return
        known = {each.sha256: name for name, each in self.named().items()}
        if self.file.exists():
            known[_hash(self.default())] = DEFAULT
        self._known, self._seen = known, seen


def _new() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0.0


def _write(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file for this user only, whole or not at all.

    :param exclusive: only if there is none yet; of two processes at the same moment one writes it.
    :raises FileExistsError: there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        if exclusive:
            os.link(new, path)
        else:
            patiently(lambda: new.replace(path))
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails names no file
        raise
    finally:
        patiently(lambda: new.unlink(missing_ok=True))


def keys_of(settings: Settings) -> Keys:
    """Return the keys of a data folder."""
    return Keys(settings.data_dir / "http")
