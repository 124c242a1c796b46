"""The values that travel between the kernel and its extensions: frozen data, no behaviour beyond reading it.

They are structs of msgspec, which are made ten times as fast as dataclasses, and their instances five times; a changed
copy is ``msgspec.structs.replace(value, name=…)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path


class Discreet(msgspec.Struct, frozen=True):
    """A value that has what must not be in a log, or is too long for one."""

    hidden: ClassVar[tuple[str, ...]] = ()
    """Fields that its representation leaves out."""

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in self.hidden)
        return f"{type(self).__name__}({', '.join(shown)})"


# -- the machine and the engine ------------------------------------------------------------------------------------


class Host(msgspec.Struct, frozen=True):
    """The machine as far as choosing and starting an engine depends on it; ``engine/host.py`` reads it."""

    os: Literal["linux", "windows", "darwin"]
    machine: str
    """``x86_64``, ``arm64`` …"""
    distribution: str = ""
    """``ID`` of os-release, such as ``ubuntu``."""
    version: str = ""
    """``VERSION_ID`` of os-release, such as ``24.04``."""
    like: tuple[str, ...] = ()
    """``ID_LIKE`` of os-release: what the distribution derives from, nearest first."""
    codename: str = ""
    """``UBUNTU_CODENAME`` or ``VERSION_CODENAME`` of os-release: names a derivative's base, such as ``noble``."""
    memory: int = 0
    """Physical memory in bytes."""
    devices: tuple[str, ...] = ("CPU",)
    """Devices that OpenVINO could use, as far as the system shows them without OpenVINO: ``CPU``, ``GPU``, ``NPU``."""
    libpython: tuple[str, ...] = ()
    """Versions of shared libpython that the loader finds, such as ``3.12``."""


class Release(msgspec.Struct, frozen=True):
    """One version of an engine and where to get it."""

    version: str
    archive: str = ""
    """File name of the archive; empty when nothing has to be fetched."""
    mirrors: tuple[str, ...] = ()
    """Base URLs or local folders that hold the archive, tried in order."""
    size: int | None = None
    """Bytes, where known beforehand."""
    sha256: str | None = None
    """Hex digest, where known beforehand."""
    asset_list: str = ""
    """URL of the release in GitHub's API, which names size and digest of each asset; empty where there is none."""
    verified: str = ""
    """The newest version whose digest is known beforehand, for users who demand that; empty if there is none."""


class Installation(msgspec.Struct, frozen=True):
    """One engine version on disk."""

    version: str
    directory: Path
    platform: str
    """Name of the platform driver that chose it."""
    sha256: str | None = None
    """Digest of the archive it came from."""


class Requirement(msgspec.Struct, frozen=True):
    """Something the system lacks for the engine to work, and what the user can do about it."""

    what: str
    remedy: str
    """The exact command to run, or the page to read; never run by us."""
    fatal: bool = True


class Finding(msgspec.Struct, frozen=True):
    """One result of a check of the host, for ``doctor`` and before an install."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str
    remedy: str = ""


class Ports(msgspec.Struct, frozen=True):
    """The loopback ports chosen for the engine."""

    rest: int
    grpc: int


class Endpoint(Discreet, frozen=True):
    """Where an engine answers."""

    hidden: ClassVar[tuple[str, ...]] = ("api_key",)
    rest: str
    """Base URL without a trailing slash, such as ``http://127.0.0.1:16666``."""
    grpc: str
    """gRPC target, such as ``127.0.0.1:9000``; empty when gRPC is not offered."""
    api_key: str = ""
    ca_file: str = ""
    """Certificate authority for TLS endpoints; empty means the system's."""
    others: tuple[str, ...] = ()
    """Base URLs of further engines that share the work, with the same key and authority."""


class LaunchPlan(msgspec.Struct, frozen=True):
    """How to start the engine. The kernel appends the OVMS flags (ports, config, keys) to ``argv``.

    An empty ``argv`` means that nothing is started: ``endpoint`` names an engine that somebody else runs.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The whole environment of the engine: nothing is inherited beside it."""
    cwd: Path | None = None
    endpoint: Endpoint | None = None


class LaunchPatch(msgspec.Struct, frozen=True):
    """What an extension adds to a launch; two extensions that set one variable are an error that names both."""

    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)


class EngineInfo(msgspec.Struct, frozen=True):
    """A running engine."""

    version: str
    endpoint: Endpoint
    pid: int | None
    """``None`` when somebody else runs it."""


class EngineStatus(msgspec.Struct, frozen=True):
    """The engine, whether it runs or not."""

    state: str
    """``ready``, or what it does instead, as the end of a sentence."""
    rest: str
    """URL of its REST API; while it does not run, the one it is meant to get."""
    installation: Installation | None = None
    """The active one, if any."""
    program: Path | None = None
    """What is started; ``None`` when somebody else runs the engine."""


class EngineExit(msgspec.Struct, frozen=True):
    """The end of an engine process."""

    cause: str
    """In words, with the engine's last error lines where there are any."""
    code: int | None
    """Exit code; ``None`` if a signal ended it."""
    signal: int | None
    uptime: float
    """Seconds."""
    expected: bool
    """We asked for it."""


# -- models --------------------------------------------------------------------------------------------------------


class ModelRef(msgspec.Struct, frozen=True):
    """A model as a caller names it, checked: ``owner/name`` or ``name``, and where and which revision."""

    id: str
    revision: str = ""
    """Branch, tag or commit on the hub; empty means the hub's default."""
    hub: str = ""
    """Name of the hub driver; empty means the configured one."""

    def __str__(self) -> str:
        """Return it as it is typed, which ``parse_model_ref`` reads."""
        return f"{self.hub}{self.hub and ':'}{self.id}{self.revision and '@'}{self.revision}"


class RemoteFile(msgspec.Struct, frozen=True):
    """One file that a hub offers."""

    path: str
    """Relative, with forward slashes."""
    size: int
    sha256: str = ""


class PullPlan(msgspec.Struct, frozen=True):
    """What a pull is about to fetch."""

    files: tuple[RemoteFile, ...]
    total: int
    """Bytes of all files."""
    present: int
    """Bytes of them that are already here and need not be fetched."""


class Progress(msgspec.Struct, frozen=True):
    """One report of long work. ``completed`` never falls."""

    status: str
    """What is being done: ``downloading``, ``verifying``, ``extracting``, ``loading``, ``success`` …"""
    completed: int = 0
    """Bytes."""
    total: int = 0
    """Bytes; 0 when not known."""
    subject: str = ""
    """The file or thing it is about."""
    digest: str = ""


class Profile(msgspec.Struct, frozen=True):
    """What an alias has of its own that makes the engine load it beside its model."""

    model: str
    """Id of the model whose files it has."""
    device: str = ""
    """Empty = as its model."""
    context: int = 0
    """Tokens that a prompt and its answer may have together; 0 = as many as its model takes."""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Options of its calculator, over those of its model."""


class LocalModel(msgspec.Struct, frozen=True):
    """A model on disk, complete and published."""

    id: str
    directory: Path
    model_type: str
    """Name of the graph driver: ``text_generation``, ``embeddings`` …"""
    size: int
    """Bytes."""
    digest: str
    modified: datetime
    """With a time zone."""
    format: str = "openvino"
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    alias_of: str = ""
    """The id of the model that this is another name of; empty for a model itself."""
    profile: Profile | None = None
    """What this name has of its own; ``None`` if it stands for what ``alias_of`` is in the engine."""

    def __hash__(self) -> int:
        return hash((self.id, self.directory, self.digest))

    @property
    def served_as(self) -> str:
        """The name by which the engine knows it."""
        return self.id if self.profile or not self.alias_of else self.alias_of


class LoadedModel(msgspec.Struct, frozen=True):
    """A model as the engine serves it."""

    model: LocalModel
    seconds: float
    """Time the load took; 0 if it was served already."""


# -- requests ------------------------------------------------------------------------------------------------------


class ServiceDefinition(msgspec.Struct, frozen=True):
    """What a service is called, which models serve it, and where faces may offer it."""

    name: str
    """``text-to-image``: lower case and dashes."""
    model_type: str
    """The graph driver whose models serve it."""
    endpoint: str
    """The engine's REST path, such as ``/v3/chat/completions``."""
    paths: tuple[str, ...] = ()
    """HTTP paths that a face may offer it at, such as ``/v1/chat/completions``."""
    default_model: str = ""
    support_models: tuple[str, ...] = ()
    streaming: bool = False
    bidirectional: bool = False
    probes: tuple[str, ...] = ()
    """Small requests that show that a model works, as JSON without ``model``; none = they would cost too much.

    A field ``file`` is an upload of MP3 in base64.
    """
    probe_answers: Literal["", "text", "vectors", "scores", "words", "sound", "picture"] = ""
    """What the answers to the probes hold, so that those of two devices are compared; empty = any is good."""
    extras: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)
    """What single faces need to offer it, by the face's name, such as ``{"http": {"name": "value"}}``."""


class Request(Discreet, frozen=True):
    """One request as a face hands it over."""

    hidden: ClassVar[tuple[str, ...]] = ("body", "fields", "files")
    body: bytes = b"{}"
    """One JSON object; admission decodes it once."""
    fields: Mapping[str, Any] | None = None
    """The decoded object, given instead of ``body`` by a face that has it already, as from a multipart form."""
    files: Mapping[str, Upload] = msgspec.field(default_factory=dict)
    """Uploads by name of the form's field."""
    timeout: float | None = None
    """Seconds for all of it, a load of the model included; ``None`` = no limit."""
    caller: str = ""
    """Name of the face that asks, such as ``http``."""
    id: str = ""
    """The caller's id of the request, for the log; empty = admission makes one."""
    keep_alive: float | None = None
    """Seconds that the model stays loaded after the request, negative = for ever; ``None`` = as the settings say."""
    trace: str = ""
    """The caller's trace context: ``traceparent`` as the W3C defines it."""
    local_files: bool = False
    """The caller is a person or program of this machine, whose request may name files by their paths."""


class Call(Discreet, frozen=True):
    """One admitted request. ``fields`` is the decoded JSON object, ``raw`` the bytes it came from."""

    hidden: ClassVar[tuple[str, ...]] = ("fields", "raw", "files")
    id: str
    service: str
    model: str
    fields: Mapping[str, Any]
    raw: bytes = b""
    """Empty where the face handed over ``fields``."""
    files: Mapping[str, Upload] = msgspec.field(default_factory=dict)
    streaming: bool = False
    timeout: float | None = None
    """Seconds left; ``None`` = no limit."""
    caller: str = ""
    keep_alive: float | None = None
    trace: str = ""
    """The caller's trace context; empty if it has none."""
    local_files: bool = False
    """``audio``, ``image`` and ``mask`` may be paths of files on this machine."""


class Message(Discreet, frozen=True):
    """One message of a bidirectional session."""

    hidden: ClassVar[tuple[str, ...]] = ("data",)
    data: bytes
    kind: Literal["text", "binary"] = "text"
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)


class Outcome(msgspec.Struct, frozen=True):
    """How a request ended."""

    code: int
    """200, or the code of the error."""
    seconds: float
    bytes_out: int
    error: str = ""
    first_byte: float | None = None
    """Seconds until the first byte of the answer; ``None`` = there was none."""
    model: str = ""
    """Id of the model that answered; empty where none did."""
    prompt_tokens: int = 0
    """Tokens of the request, where the answer says how many."""
    completion_tokens: int = 0
    """Tokens of the answer, where it says how many."""


class Answer(Discreet, frozen=True):
    """What a service or the engine answered, with status 2xx."""

    hidden: ClassVar[tuple[str, ...]] = ("body",)
    body: bytes
    content_type: str = "application/json"
    model: str = ""
    """Id of the model that answered; empty where no model was asked."""


class Upload(Discreet, frozen=True):
    """One file of a multipart request."""

    hidden: ClassVar[tuple[str, ...]] = ("data",)
    name: str
    data: bytes
    content_type: str = "application/octet-stream"
