"""Models on disk: in, out, and what is told about them."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from ovms_kernel.drivers import GraphPatch, ModelFiles
from ovms_kernel.errors import BadRequest, NotFound, OvmsError, PreconditionFailed, Refused
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models import staging
from ovms_kernel.models.graph_writer import read_graph
from ovms_kernel.models.model_card import parameter_size_of, quantization_of, read_files, weights_of
from ovms_kernel.models.model_record import RECORD, read_record, write_record
from tests.fixtures import make_gguf


def tree(folder):
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())


async def test_an_imported_model_is_all_that_aog_wants_to_know(world, tiny):
    reports: list[Any] = []
    model = await world.ingest.import_(tiny("text_generation"), "me/Tiny-0.5B-int8-ov", report=reports.append)
    assert [model] == world.store.list()
    assert (model.model_type, model.format, model.family) == ("text_generation", "openvino", "qwen2")
    assert (model.parameter_size, model.quantization) == ("0.5B", "int8")
    assert model.size == sum(each.stat().st_size for each in tiny("text_generation").iterdir())
    assert model.digest.startswith("sha256:")
    assert model.modified.tzinfo is not None
    assert reports[-1].status == "success"
    assert world.heard == [("pulled", "me/Tiny-0.5B-int8-ov")]
    assert (model.directory / "chat_template.jinja").read_bytes() == (
        tiny("text_generation") / "chat_template.jinja"
    ).read_bytes()


async def test_the_digest_depends_on_content_alone(world, tiny):
    one = await world.ingest.import_(tiny("embeddings"), "a")
    two = await world.ingest.import_(tiny("embeddings"), "b/c")
    assert one.digest == two.digest
    (tiny("embeddings") / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert (await world.ingest.import_(tiny("embeddings"), "d")).digest != one.digest


async def test_a_deleted_model_is_gone(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "me/a")
    await world.store.delete("me/a")
    assert world.store.list() == []
    assert not model.directory.parent.exists()
    locks = {".config.lock", ".staging/me@a.lock"}
    assert set(tree(world.settings.models_dir)) <= locks
    with pytest.raises(NotFound):
        await world.store.delete("me/a")


async def test_importing_again_replaces_the_model(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "a")
    (tiny("embeddings") / "extra.txt").write_text("new")
    (tiny("embeddings") / "vocab.json").write_text("{}")
    model = await world.ingest.import_(tiny("embeddings"), "a")
    assert "extra.txt" in tree(model.directory)
    assert len(world.store.list()) == 1


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "nested"])
async def test_archives_are_imported(world, tiny, tmp_path, kind):
    source = tiny("embeddings")
    top = "deep/er/" if kind == "nested" else ""
    archive = tmp_path / f"model.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for each in source.iterdir():
                file.write(each, each.name)
    else:
        with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as file:
            for each in source.iterdir():
                file.add(each, top + each.name)
    model = await world.ingest.import_(archive, "me/packed")
    assert set(tree(source)) == set(tree(model.directory)) - {"graph.pbtxt", RECORD}
    assert await world.store.verify("me/packed") == []


@pytest.mark.parametrize("evil", ["../escape.bin", "/abs.bin", "a/../../b.bin", "link", "device", "C:\\x.bin"])
async def test_archives_that_reach_out_are_refused(world, tiny, tmp_path, evil):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as file:
        for each in tiny("embeddings").iterdir():
            file.add(each, each.name)
        member = tarfile.TarInfo(evil)
        if evil == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif evil == "device":
            member.type = tarfile.CHRTYPE
        file.addfile(member, io.BytesIO(b""))
    with pytest.raises(BadRequest):
        await world.ingest.import_(archive, "me/evil")
    assert world.store.list() == []
    assert not (tmp_path / "escape.bin").exists()


async def test_a_zip_made_by_a_mac_is_imported_without_what_the_mac_added(world, tiny, tmp_path):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tiny("embeddings").iterdir()):
            archive.write(file, f"m/{file.name}")
            archive.writestr(f"__MACOSX/m/._{file.name}", b"\0\5\x16\7")
        archive.writestr("m/.DS_Store", b"x")
        archive.writestr("__MACOSX/._m", b"x")
    model = await world.ingest.import_(path, "own/m")
    left = {each.name for each in model.directory.rglob("*")}
    assert left == {*(each.name for each in tiny("embeddings").iterdir()), "graph.pbtxt", ".ovms-plugin.json"}


async def test_an_archive_that_would_grow_without_measure_is_refused(world, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("openvino_model.xml", "<net/>")
        archive.writestr("openvino_model.bin", bytes(100 << 20))
    with pytest.raises(BadRequest, match="grows more than 200 fold"):
        await world.ingest.import_(tmp_path / "bomb.zip", "own/m")
    assert world.store.staging() == []


async def test_an_imported_git_lfs_pointer_is_named_with_the_command(world, tiny, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4100000000\n"
    copy = tmp_path / "copy"
    shutil.copytree(tiny("embeddings"), copy)
    (copy / "openvino_model.bin").write_bytes(pointer)
    with pytest.raises(BadRequest, match=r"openvino_model\.bin is a Git LFS pointer .*`git lfs pull`"):
        await world.ingest.import_(copy, "own/m")
    assert world.store.list() == []


async def test_a_damaged_archive_changes_nothing(world, tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("openvino_model.xml", b"x" * 1000)
        file.writestr("openvino_model.bin", b"y" * 1000)
        file.writestr("config.json", '{"architectures": ["BertModel"]}')
    data = bytearray(archive.read_bytes())
    data[200] ^= 255
    archive.write_bytes(data)
    with pytest.raises(BadRequest, match=r"x\.zip"):
        await world.ingest.import_(archive, "a")
    assert world.store.list() == []
    assert world.store.staging() == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": b"x", "config.json": b"{}"}, r"\.safetensors.*-ov"),
        ({"pytorch_model.bin": b"x"}, r"no OpenVINO model.*\.bin"),
        ({"openvino_model.xml": b"x"}, "no OpenVINO model"),
        ({}, "no OpenVINO model"),
        ({"openvino_model.xml": b"x", "openvino_model.bin": b"x", "config.json": b"{}"}, "say its type"),
    ],
)
async def test_what_is_no_model_is_refused(world, tmp_path, files, words):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with pytest.raises(BadRequest, match=words):
        await world.ingest.import_(folder, "a")
    assert world.store.list() == []
    assert world.store.staging() == []


async def test_a_declared_type_wins_and_a_contradiction_names_both(world, tiny):
    model = await world.ingest.import_(tiny("text_generation"), "a", model_type="embeddings")
    assert model.model_type == "embeddings"
    with pytest.raises(BadRequest, match=r"declared to be of type rerank.*type embeddings"):
        await world.ingest.import_(tiny("embeddings"), "b", model_type="rerank")
    with pytest.raises(BadRequest, match=r"'chat' is not a model type .*text_generation.* ovms-graph-chat "):
        await world.ingest.import_(tiny("embeddings"), "b", model_type="chat")
    assert [each.id for each in world.store.list()] == ["a"]


async def test_an_owner_and_a_model_cannot_share_a_folder(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "me")
    with pytest.raises(BadRequest, match="me is itself a model"):
        await world.ingest.import_(tiny("embeddings"), "me/other")
    await world.ingest.import_(tiny("embeddings"), "you/other")
    with pytest.raises(BadRequest, match="you is the folder of an owner"):
        await world.ingest.import_(tiny("embeddings"), "you")


async def test_the_disk_is_asked_first(world, tiny, monkeypatch):
    usage = shutil.disk_usage(tiny("embeddings"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PreconditionFailed, match=r"needs .* on disk and 1\.0 KB are free"):
        await world.ingest.import_(tiny("embeddings"), "a")
    assert world.store.staging() == []


async def test_a_disk_that_refuses_is_said_in_a_sentence(world, tiny):
    world.settings.models_dir.parent.mkdir(parents=True)
    world.settings.models_dir.write_text("a file where the folder should be")
    with pytest.raises(OvmsError, match=r"failed because of the disk at .*models"):
        await world.ingest.import_(tiny("embeddings"), "a")


async def test_verify_finds_what_changed(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a")
    assert await world.store.verify("a") == []
    path = model.directory / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (model.directory / "config.json").unlink()
    (model.directory / "openvino_model.xml").write_bytes(b"short")
    faults = await world.store.verify("a")
    assert len(faults) == 3
    assert any("SHA-256" in fault for fault in faults)


async def test_verify_writes_nothing_into_what_another_is_replacing(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a")
    (model.directory / "openvino_model.bin").write_bytes(b"damaged")
    begun = anyio.Event()
    async with anyio.create_task_group() as group, world.store.hold("a"):
        group.start_soon(world.store.verify, "a", lambda _: begun.set())
        await begun.wait()
        await anyio.sleep(0.2)
        written = read_record(model.directory)
        assert written
        newer = replace(written, files={})
        assert not newer.damaged
        write_record(model.directory, newer)
    assert read_record(model.directory) == newer


async def test_usage_and_description(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a", options={"truncate": True})
    usage = world.store.usage()
    assert usage.models == {"a": model.size}
    assert usage.free > 0
    described = world.store.describe("a")
    assert described["options"] == {"truncate": True}
    assert "truncate: true" in described["graph"]
    assert described["graph_edited"] is False
    json.dumps(described)


async def test_a_gguf_file_that_is_cut_off_is_refused(world, tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    file = folder / "tiny.gguf"
    make_gguf.make(file, "Q8_0")
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - 1000)
    with pytest.raises(
        BadRequest, match=rf"tiny.gguf has {size - 1000} bytes and its header needs {size}; get the file again"
    ):
        await world.ingest.import_(folder, "me/cut")
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(BadRequest, match=r"tiny\.gguf ends within its GGUF header"):
        await world.ingest.import_(folder, "me/cut")
    assert world.store.list() == []


@pytest.mark.parametrize("quantization", ["F32", "BF16"])
async def test_gguf_weights_that_openvino_does_not_read_are_refused(world, tmp_path, quantization):
    folder = tmp_path / "gguf"
    folder.mkdir()
    make_gguf.make(folder / "tiny.gguf", quantization)
    with pytest.raises(BadRequest, match=f"weights of type {quantization}, which OpenVINO does not read"):
        await world.ingest.import_(folder, "me/wide")
    assert world.store.list() == []


async def test_cancelling_an_import_leaves_nothing(world, tiny):
    (tiny("embeddings") / "big.bin").write_bytes(os.urandom(64 << 20))

    def cancel(progress):
        if progress.completed > 1 << 20:
            scope.cancel()

    with anyio.CancelScope() as scope:
        await world.ingest.import_(tiny("embeddings"), "a", report=cancel)
    if scope.cancelled_caught:  # a quick disk may have been quicker
        assert world.store.list() == []
    assert world.store.staging() == []


# -- the graph -----------------------------------------------------------------------------------------------------


class Amend:
    def __init__(self, **values):
        self.values = values

    @hookimpl
    def ovms_amend_graph(self, model, options):
        if "veto" in self.values:
            raise Refused("No such models here.")
        return GraphPatch(self.values)


def options_text(world, model_id):
    return (world.store.find(model_id).directory / "graph.pbtxt").read_text()


async def test_options_come_from_settings_call_and_extensions(make_world, tiny):
    world = make_world(sections={"models": {"me/a": {"max_num_seqs": "3", "cache_size": 4, "pinned": True}}})
    world.events.register({"amend": Amend(best_of_limit=5)})
    await world.ingest.import_(tiny("text_generation"), "me/a", options={"cache_size": 6})
    text = options_text(world, "me/a")
    assert "max_num_seqs: 3" in text
    assert "cache_size: 6" in text
    assert "best_of_limit: 5" in text
    assert "pinned" not in text


async def test_tables_of_options_are_laid_over_each_other(make_world, tiny):
    world = make_world(sections={"models": {"a": {"plugin_config": {"NUM_STREAMS": "1", "PERF_COUNT": "1"}}}})
    world.events.register({"amend": Amend(plugin_config={"DEVICE_ID": "3"})})
    await world.ingest.import_(tiny("text_generation"), "a", options={"plugin_config": {"PERF_COUNT": "2"}})
    graph = options_text(world, "a")
    assert r'plugin_config: "{\"NUM_STREAMS\":\"1\",\"PERF_COUNT\":\"2\",\"DEVICE_ID\":\"3\"}"' in graph


async def test_an_extension_may_veto_and_two_may_not_contradict_each_other(world, tiny):
    world.events.register({"one": Amend(cache_size=1), "two": Amend(cache_size=2)})
    with pytest.raises(Refused, match="one and two"):
        await world.ingest.import_(tiny("text_generation"), "a")
    world.events.register({"three": Amend(veto=True)})
    with pytest.raises(Refused, match="No such models here"):
        await world.ingest.import_(tiny("text_generation"), "a")
    assert world.store.list() == []


async def test_a_wrong_option_is_refused_before_anything_is_published(world, tiny):
    with pytest.raises(BadRequest, match="pooling"):
        await world.ingest.import_(tiny("embeddings"), "a", options={"pooling": "MAX"})
    assert world.store.list() == []
    assert world.store.staging() == []


async def test_the_header_says_what_wrote_it(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "me/a")
    first = options_text(world, "me/a").splitlines()[0]
    assert first.startswith("# Written by ovms-plugin ")
    assert "me/a" in first


async def test_a_graph_edited_by_hand_is_kept_until_it_is_removed(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a")
    graph = model.directory / "graph.pbtxt"
    edited = graph.read_text().replace('models_path: "./"', 'models_path: "./"\n      truncate: true')
    graph.write_text(edited)
    assert not await world.graphs.refresh(model)
    assert graph.read_text() == edited
    await world.ingest.import_(tiny("embeddings"), "a")
    assert graph.read_text() == edited, "a new copy of the model keeps the graph, too"
    assert world.store.describe("a")["graph_edited"]
    graph.unlink()
    assert await world.graphs.refresh(model)
    assert "truncate" not in graph.read_text()
    assert not world.store.describe("a")["graph_edited"]


async def test_a_graph_that_comes_with_an_import_is_kept(world, tiny):
    graph = tiny("embeddings") / "graph.pbtxt"
    graph.write_text('# mine\ninput_stream: "REQUEST_PAYLOAD:input"\n')
    await world.ingest.import_(tiny("embeddings"), "a")
    assert options_text(world, "a").startswith("# mine")
    graph.write_text("broken {")
    with pytest.raises(BadRequest, match=r"graph\.pbtxt cannot be read"):
        await world.ingest.import_(tiny("embeddings"), "b")


async def test_changed_settings_reach_the_graph(make_world, tiny):
    world = make_world()
    await world.ingest.import_(tiny("embeddings"), "a")
    later = make_world(sections={"models": {"a": {"truncate": True}}})
    assert await later.graphs.refresh(later.store.find("a"))
    assert "truncate: true" in options_text(later, "a")
    assert not await later.graphs.refresh(later.store.find("a"))


async def test_a_pooling_that_is_a_guess_is_said_and_may_be_given(world, tiny, tmp_path, caplog):
    model = tmp_path / "plain"
    shutil.copytree(tiny("embeddings"), model)
    shutil.rmtree(model / "1_Pooling", ignore_errors=True)
    (model / "modules.json").unlink(missing_ok=True)
    await world.ingest.import_(model, "me/guessed")
    assert "How guessed makes one vector of its tokens is a guess (CLS)" in caplog.text
    caplog.clear()
    await world.ingest.import_(model, "me/told", options={"pooling": "MEAN"})
    assert "guess" not in caplog.text
    assert "pooling: MEAN" in options_text(world, "me/told")


async def test_an_option_may_name_another_model(world, tiny):
    draft = await world.ingest.import_(tiny("text_generation"), "me/draft")
    await world.ingest.import_(tiny("text_generation"), "me/main", options={"draft_models_path": "model:me/draft"})
    assert f'draft_models_path: "{draft.directory.as_posix()}"' in options_text(world, "me/main")
    with pytest.raises(NotFound, match="me/none"):
        await world.ingest.import_(tiny("text_generation"), "x", options={"draft_models_path": "model:me/none"})


# -- crashes -------------------------------------------------------------------------------------------------------


async def test_a_crash_between_two_renames_is_fixed(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "me/a")
    staged = staging.staged_files(world.settings, "me/a")
    staged.parent.mkdir(parents=True)
    model.directory.rename(staged)
    assert world.store.list() == []
    async with world.store.hold("me/a"):
        assert [each.id for each in world.store.list()] == ["me/a"]


async def test_a_folder_without_our_note_is_no_model(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "a")
    (model.directory / RECORD).unlink()
    assert world.store.list() == []
    assert read_record(model.directory) is None
    with pytest.raises(NotFound):
        world.store.find("a")


async def test_what_somebody_did_to_the_folders_by_hand_hides_no_model(world, tiny):
    kept = await world.ingest.import_(tiny("embeddings"), "me/a")
    other = await world.ingest.import_(tiny("embeddings"), "me/b")
    shutil.copytree(kept.directory, kept.directory.with_name("copy"))
    note = json.loads((other.directory / RECORD).read_text())
    (other.directory / RECORD).write_text(json.dumps(note | {"published": "yesterday"}))
    (world.settings.models_dir / "stray.txt").write_text("a note of mine")
    assert world.store.list() == [kept]
    with pytest.raises(NotFound, match=r"installed: me/a\)"):
        world.store.find("me/copy")


async def test_old_staging_is_offered_for_removal_never_removed(make_world, tiny):
    world = make_world(staging_age=100.0)
    assert not staging.open_staging(world.settings, "me/a", {"hub": "x", "revision": ""})
    folder = staging.staged_files(world.settings, "me/a")
    (folder / "half.bin").write_bytes(b"x" * 10_000)
    assert [(each.id, each.offered) for each in world.store.staging()] == [("me/a", False)]
    for each in folder.parent.rglob("*"):
        os.utime(each, (1, 1))
    assert [(each.id, each.offered) for each in world.store.staging()] == [("me/a", True)]
    assert world.store.staging()[0].size >= 10_000
    await world.store.discard_staging("me/a")
    assert world.store.staging() == []
    with pytest.raises(NotFound):
        await world.store.discard_staging("me/a")


def test_the_graph_of_an_empty_folder(tmp_path):
    assert read_graph(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Qwen3-8B-int4-ov", "int4"),
        ("x-FP16-ov", "fp16"),
        ("m-Q4_K_M", "q4_k_m"),
        ("mint4", ""),
        ("x-int4-cw-ov", "int4"),
    ],
)
def test_precision_from_the_name(name, precision):
    assert quantization_of(ModelFiles(name, {}, {}), {}) == precision


@pytest.mark.parametrize(
    ("weights", "parameters", "precision"),
    [
        ({"u4": 4_000_000_000, "f16": 100_000_000}, "8.1B", "int4"),
        ({"i8": 600_000_000, "f32": 4000}, "600.0M", "int8"),
        ({"f16": 300_000}, "150K", "fp16"),
        ({}, "", ""),
    ],
)
def test_parameters_and_precision_from_the_weights(weights, parameters, precision):
    described = ModelFiles("model", {}, {})
    assert parameter_size_of(described, weights) == parameters
    assert quantization_of(described, weights) == precision


def test_the_weights_are_those_that_the_ir_describes(fixtures):
    folder = fixtures / "embeddings"
    files = read_files(folder, "embeddings")
    weights = weights_of(folder, files.sizes)
    # The rest of the file are indices and the like.
    assert 0.95 < sum(weights.values()) / (folder / "openvino_model.bin").stat().st_size <= 1
    assert quantization_of(files, weights) == "fp16"


# -- faults --------------------------------------------------------------------------------------------------------


async def test_trash_of_a_killed_delete_is_counted_and_emptied_by_the_next_one(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "me/a")
    trash = world.settings.staging_dir / ".trash-0123"
    shutil.copytree(world.store.find("me/a").directory, trash)
    assert world.store.usage().trash >= 1000
    await world.store.delete("me/a")
    assert not trash.exists()
    assert world.store.usage().trash == 0


async def test_compiled_code_is_counted_and_goes_with_its_model(world, tiny):
    """The embedded engine keeps it in a folder for each model, OVMS in one folder for all."""
    cache = world.settings.cache_dir
    for folder in ("me@a", "me@b", "%E5%B5%8C"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "1234.blob").write_bytes(b"x" * 1000)
    (cache / "5678.cl_cache").write_bytes(b"x" * 10)
    for name in ("me/a", "嵌"):
        await world.ingest.import_(tiny("embeddings"), name)
    counted = world.store.usage().cache
    assert set(counted) == {"me/a", "me/b", "嵌", "*"}
    assert counted["me/a"] >= 1000

    await world.store.delete("me/a")
    await world.store.delete("嵌")
    assert sorted(each.name for each in cache.iterdir()) == ["5678.cl_cache", "me@b"]


async def test_compiled_code_of_a_model_that_is_replaced_goes_too(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "me/a")
    (world.settings.cache_dir / "me@a").mkdir(parents=True)
    await world.ingest.import_(tiny("rerank"), "me/a")
    assert world.store.usage().cache == {}


async def test_locks_of_names_that_were_only_asked_for_do_not_stay(world, tiny):
    await world.ingest.import_(tiny("embeddings"), "me/a")
    for name in ("me/none", "other"):
        with pytest.raises(NotFound):
            await world.store.delete(name)
        async with world.store.hold(name):
            pass
    # Windows removes a lock's file whenever nobody holds it.
    assert {each.name for each in world.settings.staging_dir.glob("*.lock")} <= {"me@a.lock"}
    await world.store.delete("me/a")
    assert list(world.settings.staging_dir.glob("*")) == []


async def test_a_lock_that_its_holder_removed_still_keeps_two_apart(world):
    inside = []

    async def enter(number: int) -> None:
        async with world.store.hold("me/none"):
            inside.append(number)
            assert len(inside) == 1
            await anyio.sleep(0.005)
            inside.clear()

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(enter, number)


async def test_a_model_whose_record_is_damaged_is_told_counted_and_removed(world, tiny):
    model = await world.ingest.import_(tiny("embeddings"), "me/a")
    for damage in (b"", b"{", b"[]", b"\0" * 300, b'{"version": 1, "id": 3}'):
        (model.directory / RECORD).write_bytes(damage)
        with pytest.raises(PreconditionFailed, match=r"record .* of me/a is damaged.*pull me/a.*rm me/a"):
            world.store.find("me/a")
        assert set(world.store.damaged()) == {"me/a"}
        assert world.store.usage().models["me/a"] >= 2000
    await world.store.delete("me/a")
    assert not model.directory.exists()
    assert world.store.damaged() == {}
