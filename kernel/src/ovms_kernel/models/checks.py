"""Refuses what cannot be a model: files that no engine loads, are not what they seem, or reach outside their folder."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from ovms_kernel.errors import BadRequest
from ovms_kernel.fetch.names import check_file_path, is_junk, one_name, shown
from ovms_kernel.models import gguf
from ovms_kernel.models.gguf import LATER_PART
from ovms_kernel.models.model_card import CONSTANT, is_served_format
from ovms_kernel.models.model_record import GRAPH, OURS
from ovms_kernel.models.properties import PLUGIN_CONFIG, read_properties

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from ovms_kernel.drivers import ModelFiles
    from ovms_kernel.models.protos.ovms_graph_pb2 import CalculatorGraphConfig
    from ovms_kernel.values import RemoteFile

SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
FOREIGN_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".h5", ".onnx", ".msgpack", ".ckpt")
MAX_FILES = 10_000
PREFERRED_GGUF = re.compile(r"(?i)q4_k_m")
SUBCONFIG = "subconfig.json"
"""What OVMS reads beside a graph as a list of further models; without one it tries ``config.json`` (docs/models.md)."""
POINTER = b"version https://git-lfs.github.com/spec/v1"
"""How a Git LFS pointer begins (git-lfs, docs/spec.md)."""
POINTER_SIZE = 1024
IR, IR_END = b"<net ", b"</net>"
"""How the graph of an OpenVINO model begins and ends."""


# -- names and formats, before anything is fetched ------------------------------------------------------------------


def choose_files(files: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """Return what to fetch of what a hub offers, checked; the record and the graph are always ours.

    :raises BadRequest: it is no model that an OpenVINO engine can use, or a path is unsafe.
    """
    if len(files) > MAX_FILES:
        raise BadRequest(
            f"{name} lists {len(files)} files, more than the {MAX_FILES} that a model may have; choose another one."
        )
    for file in files:
        check_file_path(file.path, name)
        if file.size < 0:
            raise BadRequest(
                f"{name} lists {file.path} with {file.size} bytes, which no file has; choose another model."
            )
    doubled, count = Counter(one_name(file.path) for file in files).most_common(1)[0] if files else ("", 0)
    if count > 1:
        raise BadRequest(
            f"{name} has two files that differ only in case or composition ({shown(doubled)}), "
            "which not every system can hold; choose another model."
        )
    folders = {one_name(parent) for file in files for parent in _parents(file.path)}
    for file in files:
        if one_name(file.path) in folders:
            raise BadRequest(f"{name} lists {file.path} as a file and as a folder; choose another model.")
    chosen = [
        file for file in files if file.path not in OURS and not file.path.startswith(".") and not is_junk(file.path)
    ]
    check_format((file.path for file in chosen), name)
    if any(file.path.endswith(".xml") for file in chosen):
        return chosen
    return _one_variant(chosen, name)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def check_format(paths: Iterable[str], name: str) -> None:
    """Refuse what no OpenVINO engine can load.

    :raises BadRequest: the sentence says what to look for instead.
    """
    paths = list(paths)
    if not is_served_format(paths):
        kinds = ", ".join(sorted({each for each in FOREIGN_WEIGHTS for path in paths if path.endswith(each)}))
        raise BadRequest(
            f"{name} holds no OpenVINO model, which is an .xml file with its .bin, or a .gguf file"
            f"{f' (it has {kinds} files)' if kinds else ''}; look for the same model with -ov at the end of its name, "
            "such as those at https://www.modelscope.cn/organization/OpenVINO."
        )


def _one_variant(files: Sequence[RemoteFile], name: str) -> list[RemoteFile]:
    """Choose one of the quantizations that GGUF repositories offer side by side: Q4_K_M, unless there is one only."""
    variants: dict[str, list[RemoteFile]] = {}
    others = []
    for file in files:
        if file.path.endswith(".gguf") and "mmproj" not in file.path:
            variants.setdefault(SPLIT.sub("", file.path), []).append(file)
        else:
            others.append(file)
    wanted = list(variants) if len(variants) == 1 else [each for each in variants if PREFERRED_GGUF.search(each)]
    if len(wanted) != 1:
        raise BadRequest(
            f"{name} offers several GGUF files ({', '.join(sorted(variants))}); "
            "choose one with the hub's setting allow_patterns."
        )
    return [*others, *variants[wanted[0]]]


def check_files(files: ModelFiles, name: str) -> None:
    """Refuse a model that brings a list of further models, which OVMS would serve from wherever it says.

    :raises BadRequest: the sentence names the file.
    """
    config = files.json("config.json") or {}
    listed = next((key for key in config if key.endswith("_config_list")), "")
    if SUBCONFIG in files.sizes or listed:
        named = SUBCONFIG if SUBCONFIG in files.sizes else f"{listed} in config.json"
        raise BadRequest(f"{name} brings {named}, which makes the engine serve other models; remove it.")


# -- content -------------------------------------------------------------------------------------------------------


def faults_of(folder: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return what is wrong with the files of a model, a sentence by path."""
    faults = {}
    for path, size in sizes.items():
        if size <= POINTER_SIZE and (folder / path).read_bytes().startswith(POINTER):
            faults[path] = (
                f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` where the model was cloned, "
                "then import it again."
            )
    for path in sizes:
        weights = path.removesuffix(".xml") + ".bin"
        if not path.endswith(".xml") or {path, weights} & faults.keys():
            continue
        graph = (folder / path).read_bytes()
        needed = max((int(at) + int(size) for _, at, size in CONSTANT.findall(graph)), default=0)
        if IR in graph and not graph.rstrip().endswith(IR_END):
            faults[path] = f"{path} is cut off: it does not end with {IR_END.decode()}; get the file again."
        elif weights not in sizes and needed:
            faults[weights] = f"{weights} is missing and {path} needs it; get the file."
        elif sizes.get(weights, 0) < needed:
            faults[weights] = f"{weights} has {sizes[weights]} bytes and {path} needs {needed}; get the file again."
    return faults


def check_sound(folder: Path, sizes: Mapping[str, int]) -> gguf.Gguf | None:
    """Refuse a model whose files are not what they seem; return the header of a GGUF model.

    :raises BadRequest: the first fault, or a GGUF file that the engine cannot load.
    """
    for fault in faults_of(folder, sizes).values():
        raise BadRequest(fault)
    header = None
    for path in sorted(sizes):
        if path.endswith(".gguf") and not LATER_PART.search(path):
            with (folder / path).open("rb") as file:
                found = gguf.read_header(file.read, path)
            if "mmproj" not in path:
                gguf.check_loadable(found, path, sizes[path])
                header = header or found
    return header


def check_imported(graph: CalculatorGraphConfig, usual: CalculatorGraphConfig) -> None:
    """Refuse a graph that came with a model if it does more than serve that model.

    :param usual: what the driver of the model's type builds.
    :raises BadRequest: it has another calculator, a property that is not allowed, or a path out of the model's folder.
    """
    what = f"the {GRAPH} that came with the model"
    known = {node.calculator for node in usual.node}
    for node in graph.node:
        if node.calculator not in known:
            raise BadRequest(
                f"T{what[1:]} uses {node.calculator!r}; a model of this type may use {', '.join(sorted(known))} alone."
            )
        for path, name, value in _texts(node):
            if name == PLUGIN_CONFIG:
                read_properties(value, what)
            elif (name == "path" or name.endswith("_path")) and _leads_out(value):
                raise BadRequest(f"{path} in {what} is {value!r}, which is outside the model's folder; remove it.")


def _texts(message: Message, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield place, field and value of each text in a message, unpacking what is packed."""
    from google.protobuf import descriptor_pool, message_factory
    from google.protobuf.any_pb2 import Any as Packed

    if isinstance(message, Packed):
        kind = descriptor_pool.Default().FindMessageTypeByName(message.TypeName())
        inner = message_factory.GetMessageClass(kind)()
        message.Unpack(inner)
        yield from _texts(inner, prefix)
        return
    for field, value in message.ListFields():
        place = f"{prefix}{field.name}"
        for each in value if field.is_repeated else [value]:
            if field.message_type is not None:
                yield from _texts(each, f"{place}." if field.name != "node_options" else "")
            elif isinstance(each, str):
                yield place, field.name, each


def _leads_out(path: str) -> bool:
    return path.startswith(("/", "\\", "~")) or ":" in path or ".." in path.replace("\\", "/").split("/")
