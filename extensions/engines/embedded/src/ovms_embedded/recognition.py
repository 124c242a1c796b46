"""Which graph a model folder calls for, for a start with ``--model_path`` and no graph.pbtxt (spec G)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovms_embedded import log
from ovms_embedded.calculators import read_files
from ovms_embedded.graphs import Graph, GraphInvalid, parse_graph

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_embedded.calculators import Calculator
    from ovms_embedded.calculators.discovery import Calculators

TEXT = """input_stream: "HTTP_REQUEST_PAYLOAD:input" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {{ name: "{node}" calculator: "{name}"
  input_stream: "LOOPBACK:loopback" input_stream: "HTTP_REQUEST_PAYLOAD:input"
  output_stream: "LOOPBACK:loopback" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  node_options {{ [type.googleapis.com/{options}] {{ models_path: "./" {defaults} }} }} }}"""


def recognise(folder: Path, name: str, calculators: Calculators) -> Graph:
    """Return the graph for a model folder.

    :raises GraphInvalid: no installed calculator knows what is in it.
    """
    files = read_files(folder, name)
    for each in calculators.in_order():
        try:
            found = each.detects is not None and each.detects(files)
        except Exception as error:  # noqa: BLE001 - a third party's rule costs that calculator alone
            log.serving.error("Calculator %s cannot judge %s: %s: %s", each.name, folder, type(error).__name__, error)
            continue
        if found:
            return parse_graph(graph_text(each).encode(), calculators)
    message = f"There is no graph.pbtxt in {folder}, and the model in it is not recognised."
    raise GraphInvalid(message)


def graph_text(calculator: Calculator, options: str = "") -> str:
    """Return the graph of a model in its own folder, as text.

    :param options: further options in protobuf's text format.
    """
    return TEXT.format(
        node=calculator.node,
        name=calculator.name,
        options=calculator.options.DESCRIPTOR.full_name,
        defaults=f"{calculator.defaults} {options}",
    )
