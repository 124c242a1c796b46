"""The contract of a calculator: what the engine needs to know to serve one kind of graph.

A distribution offers its calculators through entry points of the group ``ovms_embedded.calculators``. The name of an
entry point is the calculator's name in ``graph.pbtxt``; its value is a :class:`Calculator`::

    [project.entry-points."ovms_embedded.calculators"]
    ClassifyCalculator = "acme_classify:CALCULATOR"

The engine's own calculators use the same entry points.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from google.protobuf.message import Message

    from ovms_embedded.rest.http import Reply, Request, Stream
    from ovms_embedded.servable import Servable
    from ovms_embedded.workers import Worker

    Endpoint = Callable[[Request, Servable, Worker], Awaitable[Reply | Stream]]

GROUP = "ovms_embedded.calculators"


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder says about itself, for detection without a ``graph.pbtxt``."""

    name: str
    """The servable's name, in lower case."""
    config: Mapping[str, Any]
    """``config.json``; empty when it is absent or no JSON object."""
    architectures: tuple[str, ...]
    """``architectures`` of ``config.json``."""
    modules: tuple[str, ...]
    """The ``type`` of each entry of ``modules.json``."""
    pipeline: str
    """``_class_name`` of ``model_index.json``."""

    def qwen3_named(self, word: str) -> bool:
        """Tell whether this is a bare Qwen3, which is used for anything, and its name has the word."""
        return not self.modules and "Qwen3ForCausalLM" in self.architectures and word in self.name


@dataclass(frozen=True)
class Calculator:
    """One kind of graph. Front and worker are different processes; only ``worker`` names code of the second.

    :param name: the calculator's name in ``graph.pbtxt``; also the name of the entry point.
    :param task: the name of ``--task``, such as ``text_generation``.
    :param options: the protobuf message of ``node_options``. It needs a ``models_path`` field.
    :param endpoints: by path without the version prefix (``chat/completions``), a coroutine that gets the request, the
        servable and its worker, and returns a ``Reply`` or a ``Stream``.
    :param worker: a module with ``load(spec, pipe)``. It returns an object with ``info``, a dict that the endpoints
        see as ``worker.info``, and ``run()``, which answers calls for ever. An exception of ``load`` is the reason
        why the graph does not serve.
    :param node: the node's name in a graph that the engine makes itself.
    :param tokenizes: its worker answers ``tokenize``; the graph then serves every path that ends in ``tokenize``.
    :param aliases: further paths, by the path that they stand for. Messages do not list them.
    :param detects: whether the files in a folder are of this kind.
    :param order: calculators with a lower number are asked first. Those of the engine begin at 100.
    :param defaults: options of a graph that the engine makes itself, in protobuf's text format.
    """

    name: str
    task: str
    options: type[Message]
    endpoints: Mapping[str, Endpoint]
    worker: str
    node: str
    tokenizes: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    detects: Callable[[ModelFiles], bool] | None = None
    order: int = 0
    defaults: str = ""


def read_files(folder: Path, name: str) -> ModelFiles:
    """Return what a model folder says about itself."""
    config = _read(folder / "config.json")
    modules, index = _read(folder / "modules.json"), _read(folder / "model_index.json")
    config = config if isinstance(config, dict) else {}
    listed = config.get("architectures")
    return ModelFiles(
        name=name.lower(),
        config=config,
        architectures=tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, list) else (),
        modules=tuple(str(each.get("type")) for each in modules if isinstance(each, dict))
        if isinstance(modules, list)
        else (),
        pipeline=str(index.get("_class_name")) if isinstance(index, dict) else "",
    )


def _read(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
