"""``graph.pbtxt`` as a plain value: which calculator, which options."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import text_format
from google.protobuf.message import EncodeError

from ovms_embedded.properties import read_properties
from ovms_embedded.protos import ovms_graph_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

    from ovms_embedded.calculators import Calculator
    from ovms_embedded.calculators.discovery import Calculators

COARSE = 3.0
"""Seconds in which two writes may have the same time."""
NAMED = re.compile(r"""\bcalculator\s*:\s*["']([^"']*)""")


class GraphInvalid(Exception):
    """A graph that OVMS would not take, with the reason."""


@dataclass(frozen=True)
class Graph:
    """What the server must know of a graph."""

    calculator: Calculator
    node: str
    options: dict[str, Any] = field(default_factory=dict)
    """The calculator's options by name, with their defaults; options that are absent and have none are left out.
    ``given`` lists those that the file names, ``properties`` holds what ``plugin_config`` says."""
    loopback: bool = False
    inputs: tuple[str, ...] = ()
    """Names of the graph's input streams."""
    outputs: tuple[str, ...] = ()
    digest: str = ""
    """MD5 of the file, by which a reload tells whether it changed."""


def read_graph(path: Path, calculators: Calculators) -> Graph:
    """Return the graph in a file.

    :raises GraphInvalid: there is no such file, or it is none that this engine can serve.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"Failed to open graph file: {path}: {error.strerror}"
        raise GraphInvalid(message) from error
    return parse_graph(content, calculators)


def digest_of(path: Path) -> str:
    """Return the MD5 of a graph file, ``""`` when there is none."""
    try:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        return ""


def marks_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written or replaced, and costs nothing to ask; None = ask again.

    The clock of a file system may be as coarse as two seconds, so the marks of a file that is younger are none.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time() - found.st_mtime < COARSE:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def parse_graph(content: bytes, calculators: Calculators) -> Graph:
    """Return the graph in the bytes of a file.

    :raises GraphInvalid: it is none that this engine can serve.
    """
    config = pb.CalculatorGraphConfig()
    try:
        text_format.Parse(content.decode("utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError, EncodeError) as error:
        for name in NAMED.findall(content.decode("utf-8", "replace")):
            _find(name, calculators)  # without the calculator, the type of its options is not known either
        message = f"Trying to parse mediapipe graph definition failed: {error}"
        raise GraphInvalid(message) from error
    if len(config.node) != 1:
        message = f"The graph has {len(config.node)} nodes; the embedded engine serves graphs of one node."
        raise GraphInvalid(message)
    node = config.node[0]
    calculator = _find(node.calculator, calculators)
    if not node.name:
        message = f"The node of {node.calculator} needs a name."
        raise GraphInvalid(message)
    names = [_split(stream) for stream in config.input_stream]
    if [name for _, name in names] != ["input"] or len(config.output_stream) != 1:
        message = "The graph needs one input stream named input and one output stream."
        raise GraphInvalid(message)
    return Graph(
        calculator=calculator,
        node=node.name,
        options=_options(node, calculator),
        loopback=any(_split(stream)[0] == "LOOPBACK" for stream in node.input_stream),
        inputs=tuple(name for _, name in names),
        outputs=tuple(_split(stream)[1] for stream in config.output_stream),
        digest=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )


def _split(stream: str) -> tuple[str, str]:
    tag, _, name = stream.rpartition(":")
    return tag.partition(":")[0], name


def _find(name: str, calculators: Calculators) -> Calculator:
    if (found := calculators.known.get(name)) is None:
        message = calculators.broken.get(name) or f'Unable to find Calculator "{name}"'
        raise GraphInvalid(message)
    return found


def _options(node: pb.CalculatorGraphConfig.Node, calculator: Calculator) -> dict[str, Any]:
    message = calculator.options()
    if not node.node_options:
        text = f"The node of {node.calculator} has no node_options; models_path is required."
        raise GraphInvalid(text)
    if not node.node_options[0].Unpack(message):
        text = f"node_options of {node.calculator} are not {message.DESCRIPTOR.full_name}"
        raise GraphInvalid(text)
    if not message.IsInitialized():
        text = f"{message.DESCRIPTOR.name} lacks required fields: {', '.join(_missing(message))}"
        raise GraphInvalid(text)
    values = _values(message)
    try:
        values["properties"] = read_properties(values.get("plugin_config", ""))
    except ValueError as error:
        raise GraphInvalid(str(error)) from error
    return values | {"given": [each.name for each, _ in message.ListFields()]}


def _missing(message: Any) -> list[str]:  # noqa: ANN401 - the stubs do not know the method
    return list(message.FindInitializationErrors())


def _values(message: Message) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in message.DESCRIPTOR.fields:
        value = getattr(message, each.name)
        if each.is_repeated:
            entry = each.message_type
            if entry is not None and entry.GetOptions().map_entry:
                kind = entry.fields_by_name["value"].message_type
                values[each.name] = {key: _values(value[key]) if kind else value[key] for key in value}
            else:
                values[each.name] = [_values(item) if entry else item for item in value]
        elif each.message_type is not None:
            if message.HasField(each.name):
                values[each.name] = _values(value)
        elif message.HasField(each.name) or each.has_default_value:
            values[each.name] = each.enum_type.values_by_number[value].name if each.enum_type else value
    return values
