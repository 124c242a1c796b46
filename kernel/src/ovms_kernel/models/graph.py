"""Graphs as protobuf messages, for graph drivers by way of the api; protobuf is imported where it is used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ovms_kernel.declared import meant, read_bool
from ovms_kernel.errors import BadRequest
from ovms_kernel.models.properties import PLUGIN_CONFIG, read_properties
from ovms_kernel.settings import ModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.message import Message

    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig
    from ovms_kernel.values import Host


def graph_of(
    calculator: str,
    node: str,
    options: Message,
    *,
    side_packets: tuple[str, ...],
    tags: tuple[str, str] = ("HTTP_REQUEST_PAYLOAD", "HTTP_RESPONSE_PAYLOAD"),
    loopback: bool = False,
) -> CalculatorGraphConfig:
    """Return a graph of one node that serves HTTP requests.

    :param calculator: the registered name of the calculator.
    :param node: a name that is unique in the graph; OVMS keys the node's resources by it.
    :param side_packets: ``TAG:name`` of each; OVMS fixes the names.
    :param tags: tags of the input and the output stream; their names are always ``input`` and ``output``.
    :param loopback: the node sends itself a packet as long as it has more to say, which streaming needs.
    """
    from google.protobuf.message import EncodeError

    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig, SyncSetInputStreamHandlerOptions

    streams = [f"{tag}:{name}" for tag, name in zip(tags, ("input", "output"), strict=True)]
    graph = CalculatorGraphConfig(input_stream=streams[:1], output_stream=streams[1:])
    only = graph.node.add(
        name=node,
        calculator=calculator,
        input_side_packet=side_packets,
        input_stream=streams[:1],
        output_stream=streams[1:],
    )
    if loopback:
        only.input_stream.insert(0, "LOOPBACK:loopback")
        only.output_stream.insert(0, "LOOPBACK:loopback")
        only.input_stream_info.add(tag_index="LOOPBACK:0", back_edge=True)
        only.input_stream_handler.input_stream_handler = "SyncSetInputStreamHandler"
        handler = only.input_stream_handler.options.Extensions[SyncSetInputStreamHandlerOptions.ext]
        handler.sync_set.add(tag_index=["LOOPBACK:0"])
    try:
        only.node_options.add().Pack(options)
    except EncodeError as error:  # a table of an option lacks a field that it must have
        raise BadRequest(f"The options of {calculator} are not complete: {error}.") from error
    return graph


def fill(options: Message, *layers: Mapping[str, Any], what: str) -> None:
    """Set the fields of a calculator's options from plain values; a later layer wins.

    Text is converted to the field's type, as settings from the environment are text; an enum takes its name, a message
    a table, a repeated field a list. ``plugin_config`` takes JSON text or a table, and tables are laid over each other.
    A value of ``None`` or empty text leaves a field at its default.

    :param what: the model type, for the sentence.
    :raises BadRequest: a name is not an option, or a value does not fit it.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name == PLUGIN_CONFIG:
                values[name] = values.get(name, {}) | read_properties(value, f"a {what} model")
            else:
                values[name] = value
    _fill(options, values, what, "")


def check_options(options: Message, section: Mapping[str, Any], place: Callable[[str], str], prefix: str) -> None:
    """Refuse a section of settings that has another name or value than the options of a calculator.

    :param place: returns where a name was set, such as ``the environment``.
    :param prefix: what stands before the names in errors, such as ``graphs.rerank.``.
    :raises BadRequest: the sentence names the place, and what was meant.
    """
    known = options.DESCRIPTOR.fields_by_name
    for name, value in section.items():
        if name not in known:
            raise BadRequest(f"In {place(name)}, {prefix}{name} is not a setting; {meant(name, known, prefix)}")
        try:
            fill(options, {name: value}, what=prefix.split(".")[1])
        except BadRequest as error:
            raise BadRequest(f"In {place(name)}, {prefix}{error.message}") from error


def check_model_options(
    offered: Sequence[Message], section: Mapping[str, Any], place: Callable[[str], str], prefix: str
) -> None:
    """Refuse the options of a model whose type is not known yet, if no type of model has them.

    :param offered: the options of the calculators of all types.
    :raises BadRequest: as ``check_options``.
    """
    for name, value in section.items():
        having = [each for each in offered if name in each.DESCRIPTOR.fields_by_name]
        if not having:
            known = {
                *ModelSettings.__struct_fields__,
                *(key for each in offered for key in each.DESCRIPTOR.fields_by_name),
            }
            raise BadRequest(f"In {place(name)}, {prefix}{name} is not a setting; {meant(name, known, prefix)}")
        wrong: list[BadRequest] = []
        for each in having:
            try:
                fill(type(each)(), {name: value}, what=each.DESCRIPTOR.name)
            except BadRequest as error:
                wrong.append(error)
        if len(wrong) == len(having):
            raise BadRequest(f"In {place(name)}, {prefix}{name} cannot be {value!r}.") from wrong[0]


def default_device(host: Host) -> str:
    """Return the device to name in a graph: ``CPU`` if there is nothing else, else none.

    Given no device, OVMS takes the best GPU that it can really use, which only it can know.
    """
    return "" if "GPU" in host.devices else "CPU"


def _fill(message: Message, values: Mapping[str, Any], what: str, prefix: str) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        if name not in known:
            offered = ", ".join(sorted(known))
            raise BadRequest(f"{prefix}{name} is not an option of {what} models; there are {offered}.")
        if value is None or value == "" or value == {}:
            continue
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) if name == PLUGIN_CONFIG else value
        try:
            _set(message, known[name], text, what, prefix + name)
        except (TypeError, ValueError, KeyError) as error:
            raise BadRequest(
                f"{prefix}{name} of a {what} model cannot be {value!r}; it takes {_kind(known[name])}."
            ) from error


def _set(message: Message, field: Any, value: Any, what: str, path: str) -> None:  # noqa: ANN401
    if field.is_repeated:
        if not isinstance(value, (list, tuple)):
            raise TypeError(path)
        for each in value:
            if field.message_type is None:
                getattr(message, field.name).append(_scalar(field, each))
            elif isinstance(each, dict):
                _fill(getattr(message, field.name).add(), each, what, f"{path}.")
            else:
                raise TypeError(path)
    elif field.message_type is not None:
        if not isinstance(value, dict):
            raise TypeError(path)
        getattr(message, field.name).SetInParent()
        _fill(getattr(message, field.name), value, what, f"{path}.")
    else:
        setattr(message, field.name, _scalar(field, value))


def _scalar(field: Any, value: Any) -> Any:  # noqa: ANN401 - any value to any field
    if field.enum_type is not None:
        if isinstance(value, str):
            return field.enum_type.values_by_name[value.upper()].number
        return field.enum_type.values_by_number[value].number
    kind = field.cpp_type
    if kind == field.CPPTYPE_BOOL:
        return read_bool(value)
    if isinstance(value, (bool, dict, list)):
        raise TypeError(field.name)
    if kind == field.CPPTYPE_STRING:
        return str(value)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return float(value)
    if isinstance(value, float):
        raise TypeError(field.name)
    return int(value)


def _kind(field: Any) -> str:  # noqa: ANN401
    if field.is_repeated:
        return "a list" if field.message_type is None else "a list of tables"
    if field.message_type is not None:
        return "a table"
    if field.enum_type is not None:
        return "one of " + ", ".join(each.name for each in field.enum_type.values)
    if field.name == PLUGIN_CONFIG:
        return "a table or a JSON object"
    names = {field.CPPTYPE_BOOL: "true or false", field.CPPTYPE_STRING: "text"}
    whole = field.cpp_type not in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE)
    return names.get(field.cpp_type, "a whole number" if whole else "a number")
