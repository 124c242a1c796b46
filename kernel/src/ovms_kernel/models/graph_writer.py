"""From a model's files to its type and its ``graph.pbtxt``, through the graph drivers.

A driver builds a message; here it is printed by protobuf and read back before it is written.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from msgspec.structs import replace

from ovms_kernel.drivers import GraphOptions
from ovms_kernel.errors import BadRequest, NotFound, NotSupported, OvmsError
from ovms_kernel.events import merge
from ovms_kernel.files import write_atomically
from ovms_kernel.models import profiles
from ovms_kernel.models.model_card import read_files
from ovms_kernel.models.model_record import GRAPH, graph_digest, read_record, write_record
from ovms_kernel.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ovms_kernel.drivers import GraphTemplate, ModelFiles
    from ovms_kernel.events import Events
    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig
    from ovms_kernel.models.store import Store
    from ovms_kernel.settings import Settings
    from ovms_kernel.values import Host, LocalModel, Profile

log = logging.getLogger(__name__)

SERVING_KEYS = frozenset(ModelSettings.__struct_fields__)
"""Settings of a model that are about serving it; all others are options of its calculator."""
DEVICE_OPTIONS = ("device", "target_device")
"""Options that name the device of a graph."""
MODEL_PREFIX = "model:"
"""An option that names another model here, such as a draft model, is written ``model:owner/name``."""


class GraphWriter:
    """Recognises models and writes their graphs.

    :param drivers: graph drivers by name.
    :param live: returns the settings that hold now.
    """

    def __init__(
        self,
        events: Events,
        store: Store,
        drivers: Mapping[str, GraphTemplate],
        host: Host,
        live: Callable[[], Settings],
    ) -> None:
        self._live = live
        self._events = events
        self._store = store
        self._drivers = {driver.model_type: driver for driver in drivers.values()}
        self._host = host

    def check_type(self, model_type: str) -> None:
        """Refuse a type that no installed extension knows; an empty one is none.

        :raises BadRequest: the sentence lists the types there are.
        """
        if model_type and model_type not in self._drivers:
            offered = ", ".join(sorted(self._drivers)) or "none"
            wanted = f"ovms-graph-{model_type.replace('_', '-')}"
            raise BadRequest(
                f"{model_type!r} is not a model type (known: {offered}); install {wanted} or name another."
            )

    def recognise(self, described: ModelFiles, declared: str, name: str) -> str:
        """Return the model type: the declared one unless the files contradict it, else what the files say.

        :raises BadRequest: the files are of another type than declared, or of none that is known.
        :raises NotSupported: no type at all is known.
        """
        if not self._drivers:
            raise NotSupported("No extension for model types is installed; install one, such as ovms-graph-embeddings.")
        self.check_type(declared)
        scores: dict[str, int] = {}
        for kind, driver in sorted(self._drivers.items()):
            try:
                scores[kind] = driver.recognises(described)
            except Exception as error:
                if kind == declared:
                    raise
                # It costs models of its own type alone.
                cause = f"{type(error).__name__}: {error}"
                log.warning("Extension graphs.%s cannot tell whether %s is of its type (%s).", kind, name, cause)
                log.debug("Extension graphs.%s failed", kind, exc_info=True)
        best = max(scores, key=lambda kind: scores[kind], default="")
        if not best or scores[best] <= 0:
            if declared:
                return declared
            raise BadRequest(
                f"What {name} does cannot be told from its files; say its type ({', '.join(sorted(self._drivers))}), "
                "or install the extension for its type."
            )
        if declared and scores[declared] <= 0:
            raise BadRequest(
                f"{name} was declared to be of type {declared}, but its files are those of type {best}; "
                f"declare it as {best}, or choose another model for {declared}."
            )
        return declared or best

    async def write(
        self, folder: Path, model: LocalModel, given: Mapping[str, Any], device: str = "", *, forced: bool = False
    ) -> str:
        """Write the graph of a model that lies, perhaps for the moment, in that folder; return its SHA-256.

        :param given: calculator options that came with the pull; they win over settings, extensions over them.
        :param device: the only one that the graph may use where no option names one; empty means any of the host's.
        :param forced: the graph uses it whatever the options name.
        :raises BadRequest: an option is unknown or has a wrong value.
        :raises Refused: an extension vetoes, or two contradict each other.
        """
        driver = self._driver(model.model_type)
        values = self._values_of(model, given)
        host = replace(self._host, devices=(device,)) if device else self._host
        options = GraphOptions(host, values)
        answers = await self._events.ask("ovms_amend_graph", model=model, options=options)
        patch = merge(((name, answer.values) for name, answer in answers), "the graph option")
        values = self._resolve(_laid_over(values, patch))
        if forced:
            values |= {name: device for name in DEVICE_OPTIONS if name in values}
        options = replace(options, values=values)

        def build() -> str:
            from importlib.metadata import version

            graph = driver.build(read_files(folder, model.id.rsplit("/", 1)[-1]), options)
            header = f"Written by ovms-plugin {version('ovms-kernel')} for {model.id}, of type {model.model_type}."
            return write_graph(folder, print_graph(graph, header))

        return await anyio.to_thread.run_sync(build)

    def check(
        self, described: ModelFiles, model_type: str, model_id: str, given: Mapping[str, Any]
    ) -> CalculatorGraphConfig:
        """Build the graph of what is given and set, before anything large is fetched for it.

        :raises BadRequest: an option is unknown or has a wrong value.
        """
        values = self._resolve(self._given(model_id, given))
        return self._driver(model_type).build(described, GraphOptions(self._host, values))

    def check_options(self, model: LocalModel, options: Mapping[str, Any]) -> None:
        """Build the graph of an installed model with these options, for errors in them.

        :raises BadRequest: an option is unknown or has a wrong value.
        """
        self.check(read_files(model.directory, model.id.rsplit("/", 1)[-1]), model.model_type, model.id, options)

    def check_profile(self, name: str, profile: Profile) -> None:
        """Refuse a device, a context or options that the model of a profile cannot have.

        :raises NotFound: that model is not installed.
        :raises BadRequest: the sentence says what is wrong.
        """
        model = self._store.find(profile.model)
        profiles.check(profile, model, self._host)
        record = read_record(model.directory)
        own = replace(model, id=name, profile=profile)
        values = self._resolve(self._values_of(own, record.options if record else {}))
        files = read_files(model.directory, model.id.rsplit("/", 1)[-1])
        self._driver(model.model_type).build(files, GraphOptions(self._host, values))

    def guess_of(self, described: ModelFiles, model_type: str, model_id: str, given: Mapping[str, Any]) -> str:
        """Return what the driver had to guess of a model, in a sentence; empty if nothing, or if it does not tell."""
        guess = getattr(self._driver(model_type), "guess", None)
        return str(guess(described, self._given(model_id, given))) if guess else ""

    async def refresh(self, model: LocalModel, *, device: str = "", forced: bool = False) -> bool:
        """Write the graph that settings and extensions ask for now; return whether the file changed.

        :param device: as for :meth:`write`, like ``forced``.
        """
        record = await anyio.to_thread.run_sync(read_record, model.directory)
        if record is None:
            raise NotFound(f"Model {model.id} is no longer installed; pull it again.")
        before = await anyio.to_thread.run_sync(graph_digest, model.directory)
        if before not in ("", record.graph):
            log.info("Model %s: keeping its graph.pbtxt as somebody else wrote it", model.id)
            return False
        digest = await self.write(model.directory, model, record.options, device, forced=forced)
        if digest != record.graph:
            await anyio.to_thread.run_sync(write_record, model.directory, replace(record, graph=digest))
        return digest != before

    def _driver(self, model_type: str) -> GraphTemplate:
        try:
            return self._drivers[model_type]
        except KeyError:
            wanted = f"ovms-graph-{model_type.replace('_', '-')}"
            raise NotSupported(f"No extension for {model_type} models is loaded; install {wanted}.") from None

    def _values_of(self, model: LocalModel, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a model, or of a profile: its own over those of its model."""
        if (profile := model.profile) is None:
            return self._given(model.id, given)
        own = dict(profile.options)
        if profile.device:
            own[self._device_option(model.model_type)] = profile.device
        return _laid_over(self._given(profile.model, given), own)

    def _device_option(self, model_type: str) -> str:
        options = getattr(self._driver(model_type), "options", None)
        known = options().DESCRIPTOR.fields_by_name if options else {}
        return next((each for each in DEVICE_OPTIONS if each in known), DEVICE_OPTIONS[0])

    def _given(self, model_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's options: those of its settings, and over them those that came with the pull."""
        section = self._live().section("models", model_id)
        return _laid_over({key: value for key, value in section.items() if key not in SERVING_KEYS}, given)

    def _resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace ``model:owner/name`` by that model's folder, with forward slashes on every system."""
        return {
            key: self._store.find(value.removeprefix(MODEL_PREFIX)).directory.absolute().as_posix()
            if isinstance(value, str) and value.startswith(MODEL_PREFIX)
            else value
            for key, value in values.items()
        }


def _laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay options over others; two tables of one name, such as ``plugin_config``, become one."""
    tables = {
        name: {**lower[name], **value}
        for name, value in upper.items()
        if isinstance(value, dict) and isinstance(lower.get(name), dict)
    }
    return {**lower, **upper, **tables}


def print_graph(graph: CalculatorGraphConfig, header: str) -> str:
    """Return the text of ``graph.pbtxt``, which was read back and found to be the same message.

    :param header: what wrote it and for what, one line.
    """
    from google.protobuf import text_format

    # The second line is OVMS's own directive: keep a pool of built graphs for concurrent requests.
    comment = f"# {' '.join(header.split())}\n# OVMS_GRAPH_QUEUE_MAX_SIZE: AUTO\n"
    text = comment + text_format.MessageToString(graph, as_utf8=True)
    if parse_graph(text) != graph:
        raise OvmsError("The graph that was built does not read back as it was written; please report this.")
    return text


def parse_graph(text: str) -> CalculatorGraphConfig:
    """Return the message that the text of a ``graph.pbtxt`` stands for.

    :raises BadRequest: it is not the text of a graph.
    """
    from google.protobuf import text_format

    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig

    try:
        return text_format.Parse(text, CalculatorGraphConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BadRequest(f"{GRAPH} cannot be read ({' '.join(str(error).split())}); fix or remove it.") from error


def read_graph(folder: Path) -> CalculatorGraphConfig | None:
    """Return the graph in a model's folder; ``None`` if it has none.

    :raises BadRequest: it is not the text of a graph.
    """
    try:
        return parse_graph((folder / GRAPH).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise BadRequest(f"{folder / GRAPH} is not UTF-8 text; fix or remove it.") from error


def write_graph(folder: Path, text: str) -> str:
    """Replace a folder's ``graph.pbtxt`` atomically, if it differs; return its SHA-256 as hex."""
    data = text.encode()
    digest = hashlib.sha256(data).hexdigest()
    if graph_digest(folder) != digest:
        write_atomically(folder / GRAPH, data)
    return digest
