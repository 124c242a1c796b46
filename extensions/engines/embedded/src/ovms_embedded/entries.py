"""From an entry of the configuration to its graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ovms_embedded.graphs import Graph, GraphInvalid, read_graph
from ovms_embedded.recognition import recognise

if TYPE_CHECKING:
    from ovms_embedded.calculators.discovery import Calculators
    from ovms_embedded.config import Entry


def graph_of(entry: Entry, calculators: Calculators | None) -> Graph:
    """Return an entry's graph: its file's, or one made for its model folder.

    :raises GraphInvalid: there is none that this engine can serve.
    """
    if calculators is None:
        raise AssertionError
    path = Path(entry.graph_path)
    if entry.flags or (entry.recognise and not path.exists()):
        return recognise(Path(entry.base_path), entry.name, calculators, entry.flags)
    graph = read_graph(path, calculators)
    models = Path(entry.base_path, graph.options["models_path"])
    if not models.exists():  # the worker would say so, too, but only after it has started
        message = f"Path to the model does not exist: {models}"
        raise GraphInvalid(message)
    return graph


def cache_folder(cache_dir: str | None, name: str) -> str | None:
    """Return where a model's compiled code is kept: a folder of its own, to be removed with the model."""
    return str(Path(cache_dir, quote(name.replace("/", "@"), safe="@+"))) if cache_dir else None
