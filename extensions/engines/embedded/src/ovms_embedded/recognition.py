"""Which graph a model folder calls for, for a start with ``--model_path`` and no graph.pbtxt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ovms_embedded import log
from ovms_embedded.calculators import read_files
from ovms_embedded.graphs import Graph, GraphInvalid, parse_graph

if TYPE_CHECKING:
    from pathlib import Path

    from ovms_embedded.calculators import Calculator
    from ovms_embedded.calculators.discovery import Calculators
    from ovms_embedded.cli import GraphFlags

TEXT = """input_stream: "HTTP_REQUEST_PAYLOAD:input" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {{ name: "{node}" calculator: "{name}"
  input_stream: "LOOPBACK:loopback" input_stream: "HTTP_REQUEST_PAYLOAD:input"
  output_stream: "LOOPBACK:loopback" output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  node_options {{ [type.googleapis.com/{options}] {{ models_path: "./" {defaults} }} }} }}"""


def recognise(folder: Path, name: str, calculators: Calculators, flags: GraphFlags) -> Graph:
    """Return the graph for a model folder.

    :param flags: what the command line says of it.
    :raises GraphInvalid: no installed calculator knows what is in it, or none is for the task that is asked for.
    """
    return parse_graph(text_for(folder, name, calculators, flags).encode(), calculators)


def text_for(folder: Path, name: str, calculators: Calculators, flags: GraphFlags) -> str:
    """Return the text of :func:`recognise`'s graph."""
    calculator = _for_task(flags.task, calculators) if flags.task else _detect(folder, name, calculators)
    return TEXT.format(
        node=calculator.node,
        name=calculator.name,
        options=calculator.options.DESCRIPTOR.full_name,
        defaults=f"{calculator.defaults} {_options(calculator, flags)}".strip(),
    )


def _for_task(task: str, calculators: Calculators) -> Calculator:
    found = {each.task: each for each in calculators.in_order()}
    if task not in found:
        message = f"There is no task {task}; use one of {', '.join(sorted(found))}."
        raise GraphInvalid(message)
    return found[task]


def _detect(folder: Path, name: str, calculators: Calculators) -> Calculator:
    files = read_files(folder, name)
    for each in calculators.in_order():
        try:
            found = each.detects is not None and each.detects(files)
        except Exception as error:  # noqa: BLE001 - a third party's rule costs that calculator alone
            log.serving.error("Calculator %s cannot judge %s: %s: %s", each.name, folder, type(error).__name__, error)
            continue
        if found:
            return each
    message = f"There is no graph.pbtxt in {folder}, and the model in it is not recognised; name its --task."
    raise GraphInvalid(message)


def _options(calculator: Calculator, flags: GraphFlags) -> str:
    known = calculator.options.DESCRIPTOR.fields_by_name
    device = "device" if "device" in known else "target_device"
    wanted = {device: flags.device, "draft_models_path": flags.draft}
    for option, value in wanted.items():
        if value and option not in known:
            message = f"Models for {calculator.task} take no {option}."
            raise GraphInvalid(message)
    return " ".join(f"{option}: {json.dumps(value, ensure_ascii=False)}" for option, value in wanted.items() if value)
