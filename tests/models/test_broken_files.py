"""What is wrong with a model's files, and what a Mac puts beside them, by every way in: folder, archives, hub."""

import io
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest

from ovms_kernel.errors import BadRequest
from ovms_kernel.models import model_record
from ovms_kernel.values import ModelRef
from tests.gguf_files import gguf_header

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4100000000\n"
GRAPH = b'<net name="a"><data element_type="f32" shape="9" offset="64" size="36" /></net>\n'
WHOLE = {
    "config.json": b'{"architectures": ["BertModel"]}',
    "openvino_model.xml": GRAPH,
    "openvino_model.bin": bytes(100),
    "openvino_tokenizer.xml": GRAPH,
    "openvino_tokenizer.bin": bytes(100),
}
CHAT = {"config.json": b'{"architectures": ["LlamaForCausalLM"]}'}
GGUF = gguf_header()
FAULTS: dict[str, tuple[dict[str, bytes], str]] = {
    "pointer": (WHOLE | {"openvino_model.bin": POINTER}, r"openvino_model\.bin is a Git LFS pointer.*`git lfs pull`"),
    "pointer with CRLF": (
        WHOLE | {"openvino_model.bin": POINTER.replace(b"\n", b"\r\n")},
        r"openvino_model\.bin is a Git LFS pointer",
    ),
    "pointer of the tokenizer": (WHOLE | {"openvino_tokenizer.bin": POINTER}, r"openvino_tokenizer\.bin is a Git LFS"),
    "pointer for a graph": (WHOLE | {"openvino_model.xml": POINTER}, r"openvino_model\.xml is a Git LFS pointer"),
    "pointer to GGUF": (CHAT | {"m.gguf": POINTER}, r"m\.gguf is a Git LFS pointer"),
    "cut weights": (WHOLE | {"openvino_model.bin": bytes(99)}, r"openvino_model\.bin has 99 bytes and .*xml needs 100"),
    "cut tokenizer": (WHOLE | {"openvino_tokenizer.bin": b""}, r"openvino_tokenizer\.bin has 0 bytes and .* needs 100"),
    "no tokenizer": (
        {name: data for name, data in WHOLE.items() if name != "openvino_tokenizer.bin"},
        r"openvino_tokenizer\.bin is missing and openvino_tokenizer\.xml needs it",
    ),
    "cut graph": (WHOLE | {"openvino_model.xml": GRAPH[:-9]}, r"openvino_model\.xml is cut off"),
    "cut GGUF": (CHAT | {"m.gguf": GGUF[:-300]}, r"m\.gguf has \d+ bytes and its header needs \d+; get the file again"),
    "cut GGUF header": (CHAT | {"m.gguf": GGUF[:90]}, r"m\.gguf ends within its GGUF header"),
}
MAC = {
    "__MACOSX/m/._openvino_model.bin": b"\0\5\x16\7",
    "m/._openvino_model.xml": b"\0\5\x16\7",
    "m/._openvino_model.bin": b"\0\5\x16\7",
    "._m": b"\0\5\x16\7",
    "m/.DS_Store": b"x",
}


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path / "m"


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path / "m.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path / "m.zip"


def packed(path: Path, files: dict[str, bytes], compression: str) -> Path:
    with tarfile.open(path / f"m.tar.{compression}", f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path / f"m.tar.{compression}"


WAYS = ("folder", "zip", "tar", "tar.gz", "hub")


@pytest.fixture
def take(puller, hub, tmp_path):
    """Take a model, whose files are below ``m/``, by one way."""

    async def run(way, files):
        if way == "hub":
            hub.add("own/m", folder(tmp_path, files))
            return await puller.ingest.pull(ModelRef("own/m"))
        make = {"folder": folder, "zip": zipped}.get(way) or partial(packed, compression=way[4:])
        return await puller.ingest.import_(make(tmp_path, files), "own/m")

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_files_that_are_not_what_they_seem_are_named_and_nothing_is_kept(take, puller, way, fault):
    files, sentence = FAULTS[fault]
    with pytest.raises(BadRequest, match=sentence):
        await take(way, {f"m/{name}": data for name, data in files.items()})
    assert puller.store.list() == []


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_mac_adds_is_left_out(take, way):
    model = await take(way, {f"m/{name}": data for name, data in WHOLE.items()} | MAC)
    left = {each.relative_to(model.directory).as_posix() for each in model.directory.rglob("*")}
    assert left == {*WHOLE, *model_record.OURS}


@pytest.mark.parametrize("way", WAYS)
async def test_a_whole_gguf_file_is_taken(take, way):
    model = await take(way, {f"m/{name}": data for name, data in (CHAT | {"m.gguf": GGUF}).items()})
    assert (model.format, model.family, model.quantization) == ("gguf", "llama", "Q4_K_M")
