"""Pulls through the library: joined, cancelled, refused, offline, and killed."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from ovms_kernel import files
from ovms_kernel.errors import BadRequest, NotSupported, PreconditionFailed, Refused, TimedOut, Unavailable
from ovms_kernel.fetch.partial import COUNT, HEADER, PARTIAL
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models import staging
from ovms_kernel.testing.hub import Fault
from ovms_kernel.values import ModelRef
from tests.gguf_files import BF16, F32, Q4_K, Q5_0, gguf_header
from tests.processes import ENDED_BY_FORCE, end_by_force

REF = ModelRef("me/model")
BIG = "openvino_model.bin"
KILLS = 20 * int(os.environ.get("OVMS_KILLS", "1"))


def assert_whole(world, repo, model_id="me/model"):
    folder = world.store.find(model_id).directory
    expected = {each.relative_to(repo).as_posix() for each in repo.rglob("*") if each.is_file()}
    expected -= {".gitattributes", "graph.pbtxt"}
    found = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}
    assert found == expected | {"graph.pbtxt", ".ovms-plugin.json"}
    for name in expected:
        assert (folder / name).read_bytes() == (repo / name).read_bytes(), name


async def test_a_model_is_pulled_recognised_and_published(puller, hub, repo):
    hub.add("me/model", repo)
    reports: list[Any] = []
    model = await puller.ingest.pull(REF, report=reports.append)
    assert_whole(puller, repo)
    assert model.model_type == "text_generation"
    assert puller.heard == [("pulled", "me/model")]
    downloading = [each.completed for each in reports if each.status == "downloading"]
    assert downloading == sorted(downloading)
    assert {each.total for each in reports if each.status == "downloading"} == {model.size}
    assert (reports[-1].status, reports[-1].completed) == ("success", model.size)
    assert "of the author" not in (model.directory / "graph.pbtxt").read_text()
    assert puller.store.staging() == []
    assert await puller.store.verify("me/model") == []


async def test_a_complete_copy_needs_no_network(puller, hub, repo):
    hub.add("me/model", repo)
    await puller.ingest.pull(REF)
    hub.refuse_all = 500
    before = hub.listings
    model = await puller.ingest.pull(REF, model_type="text_generation")
    assert model.id == "me/model"
    assert hub.listings == before


async def test_a_copy_that_lost_a_file_is_completed(puller, hub, repo):
    hub.add("me/model", repo)
    model = await puller.ingest.pull(REF)
    (model.directory / "config.json").unlink()
    before = hub.sent
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)
    assert hub.sent - before < 100_000, "what was whole is taken over, not fetched"


async def test_what_verify_finds_damaged_is_fetched_again(puller, hub, repo):
    hub.add("me/model", repo)
    model = await puller.ingest.pull(REF)
    before = hub.sent
    data = bytearray((repo / "tokenizer.json").read_bytes())
    data[100] ^= 1
    (model.directory / "tokenizer.json").write_bytes(data)
    await puller.ingest.pull(REF)
    assert hub.sent == before, "nobody has looked at the content"
    assert len(await puller.store.verify("me/model")) == 1
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)
    assert 0 < hub.sent - before < 1_000_000
    assert await puller.store.verify("me/model") == []


async def test_a_refresh_fetches_what_changed(puller, hub, repo):
    hub.add("me/model", repo)
    first = await puller.ingest.pull(REF)
    (repo / "generation_config.json").write_text('{"do_sample": false}')
    hub.add("me/model", repo)
    before = hub.sent
    second = await puller.ingest.pull(REF, refresh=True)
    assert second.digest != first.digest
    assert_whole(puller, repo)
    assert hub.sent - before < 1000


async def test_a_refresh_of_what_has_not_changed_touches_nothing(puller, hub, repo):
    hub.add("me/model", repo)
    model = await puller.ingest.pull(REF)
    before = (hub.sent, model.directory.stat().st_ino)
    reports: list[Any] = []
    assert await puller.ingest.pull(REF, refresh=True, report=reports.append) == model
    assert reports[-1].status == "success"
    assert (hub.sent, model.directory.stat().st_ino) == before
    assert puller.heard == [("pulled", "me/model")], "it was not published again, so nobody had to unload it"
    assert hub.listings == 2
    await puller.ingest.pull(REF, refresh=True, options={"max_num_seqs": 7})
    assert "max_num_seqs: 7" in (model.directory / "graph.pbtxt").read_text()


async def test_a_plan_says_what_is_here_and_changes_nothing(make_puller, hub, repo):
    hub.add("me/model", repo)
    puller = make_puller(retries=0)
    plan = await puller.ingest.plan(REF)
    assert plan.present == 0
    assert plan.total == sum(file.size for file in plan.files) > 4_000_000
    assert not puller.settings.models_dir.exists()
    hub.fault(BIG, *[Fault("cut", 300_000)] * 8, *[Fault("status", 500)] * 20)
    with pytest.raises(Unavailable):
        await puller.ingest.pull(REF)
    present = (await puller.ingest.plan(REF)).present
    before, _ = hub.sent, hub.faults.clear()
    await puller.ingest.pull(REF)
    assert hub.sent - before == plan.total - present
    assert (await puller.ingest.plan(REF)).present == plan.total
    assert (await puller.ingest.plan(ModelRef("me/model", "master"))).present == plan.total
    (repo / "config.json").write_text((repo / "config.json").read_text() + " ")
    hub.add("me/model", repo)
    plan = await puller.ingest.plan(REF)
    assert plan.total - plan.present == (repo / "config.json").stat().st_size


async def test_files_that_are_complete_are_not_fetched_again(make_puller, hub, repo):
    (repo / "other.bin").write_bytes((repo / BIG).read_bytes()[::-1])
    hub.add("me/model", repo)
    puller = make_puller(retries=0)
    hub.fault("other.bin", *[Fault("status", 500)] * 20)
    with pytest.raises(Unavailable):
        await puller.ingest.pull(REF)
    files = staging.staged_files(puller.settings, "me/model")
    complete = {each.name for each in files.iterdir() if each.is_file()}
    assert "config.json" in complete
    hub.faults.clear()
    before = len(hub.requests)
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)
    assert not complete & {each.path for each in hub.requests[before:]}


async def test_a_file_that_was_taken_over_and_then_damaged_is_fetched(make_puller, hub, repo):
    hub.add("me/model", repo)
    puller = make_puller(retries=0)
    model = await puller.ingest.pull(REF)
    (repo / "config.json").write_text((repo / "config.json").read_text() + " ")
    hub.add("me/model", repo)
    hub.fault("config.json", *[Fault("status", 500)] * 20)
    with pytest.raises(Unavailable):
        await puller.ingest.pull(REF, refresh=True)
    with (model.directory / "tokenizer.json").open("r+b") as file:
        file.write(b"?")
    assert len(await puller.store.verify("me/model")) == 1
    hub.faults.clear()
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)


@pytest.mark.needs_posix  # folders cannot be opened there
@pytest.mark.parametrize("how", ["pull", "import"])
async def test_what_is_published_survives_a_power_cut(puller, hub, repo, monkeypatch, how):
    hub.add("me/model", repo)
    (repo / "graph.pbtxt").unlink()
    (repo / "sub").mkdir()
    (repo / "sub" / "more.bin").write_bytes(b"x" * 5000)
    hub.add("me/model", repo)
    kept, fsync = [], os.fsync

    def note(descriptor):
        fsync(descriptor)
        kept.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    await (puller.ingest.pull(REF) if how == "pull" else puller.ingest.import_(repo, "me/model"))
    folder = puller.store.find("me/model").directory
    everything = {each.relative_to(folder).as_posix(): each.stat().st_ino for each in folder.rglob("*")}
    assert {"sub", "sub/more.bin", BIG, "graph.pbtxt"} < everything.keys()
    assert set(everything.values()) <= set(kept)
    last = {name: len(kept) - kept[::-1].index(number) for name, number in everything.items()}
    assert max(last, key=lambda name: last[name]) == ".ovms-plugin.json", (
        "the note says that all is there, so it comes last"
    )
    assert kept[-1] in {each.stat().st_ino for each in (folder.parent, puller.settings.models_dir)}


async def test_staging_of_an_older_state_is_not_mixed_with_a_newer_one(make_puller, hub, repo):
    hub.add("me/model", repo)
    puller = make_puller(retries=0)
    hub.fault(BIG, *[Fault("status", 500)] * 20)
    with pytest.raises(Unavailable):
        await puller.ingest.pull(REF)
    config = json.loads((repo / "config.json").read_text())
    same_size = json.dumps(config | {"bos_token_id": 1021}, indent=2)
    assert len(same_size) <= (repo / "config.json").stat().st_size
    (repo / "config.json").write_text(same_size.ljust((repo / "config.json").stat().st_size))
    hub.faults.clear()
    hub.add("me/model", repo)
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)


async def test_revisions_are_kept_apart(puller, hub, repo):
    hub.add("me/model", repo)
    hub.add("me/model", repo, revision="v1")
    await puller.ingest.pull(REF)
    await puller.ingest.pull(ModelRef("me/model", "v1"))
    assert puller.store.describe("me/model")["revision"] == "v1"
    assert hub.listings == 2


async def test_who_asks_for_the_same_joins_and_sees_progress(puller, hub, repo):
    hub.add("me/model", repo)
    hub.rate = 500_000
    seen: dict[int, list[Any]] = {name: [] for name in range(5)}

    async def ask(name: int) -> None:
        await anyio.sleep(name * 0.05)
        await puller.ingest.pull(REF, report=seen[name].append)

    async with anyio.create_task_group() as group:
        for name in seen:
            group.start_soon(ask, name)
    assert hub.listings == 1
    assert len([each for each in hub.requests if each.path == BIG]) == 8
    for reports in seen.values():
        assert sum(each.status == "downloading" for each in reports) >= 3
        assert reports[-1].status == "success"
    assert_whole(puller, repo)


async def test_the_progress_of_another_process_is_seen(make_puller, hub, repo):
    hub.add("me/model", repo)
    hub.rate = 500_000
    one, other = make_puller(), make_puller()
    reports: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(one.ingest.pull, REF)
        await anyio.sleep(0.1)
        # A library of its own stands for a process of its own: they share nothing but the folder.
        await other.ingest.pull(REF, report=reports.append)
    assert hub.listings == 1
    downloading = [each.completed for each in reports if each.status == "downloading"]
    assert len(set(downloading)) >= 3
    assert downloading == sorted(downloading)
    assert_whole(other, repo)


async def test_the_last_asker_to_leave_stops_the_pull(puller, hub, repo):
    hub.add("me/model", repo)
    hub.rate = 100_000
    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope(), anyio.CancelScope()]

        async def ask(scope: anyio.CancelScope) -> None:
            with scope:
                await puller.ingest.pull(REF)

        for scope in scopes:
            group.start_soon(ask, scope)
        while hub.sent < 800_000:  # noqa: ASYNC110 - the hub is a thread
            await anyio.sleep(0.01)
        scopes[0].cancel()
        await anyio.sleep(0.3)
        assert hub.connections > 0, "one asker is left, so it goes on"
        scopes[1].cancel()
    assert puller.store.list() == []
    assert [each.id for each in puller.store.staging()] == ["me/model"]
    hub.rate = 0
    before = hub.sent
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)
    assert hub.sent - before < 4_000_000, "what had arrived was kept"


async def test_another_revision_meanwhile_is_refused(puller, hub, repo):
    hub.add("me/model", repo)
    hub.rate = 500_000
    async with anyio.create_task_group() as group:
        group.start_soon(puller.ingest.pull, REF)
        await anyio.sleep(0.2)
        with pytest.raises(BadRequest, match="being pulled already"):
            await puller.ingest.pull(ModelRef("me/model", "v1"))


async def test_a_failed_pull_is_told_to_everyone_and_resumed(make_puller, hub, repo):
    hub.add("me/model", repo)
    puller = make_puller(retries=1)
    hub.fault(BIG, *[Fault("cut", 100_000), Fault("status", 500), Fault("status", 500)] * 8)
    results = []

    async def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            await puller.ingest.pull(REF)
        results.append(caught.value.message)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
    assert len(results) == 2
    assert puller.store.list() == []
    hub.faults.clear()
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model.safetensors", "config.json"], r"\.safetensors.*-ov"),
        (["pytorch_model.bin", "config.json"], r"\.bin.*-ov"),
        (["openvino_model.xml", "openvino_model.bin", "../../evil"], "leads outside"),
        (["openvino_model.xml", "openvino_model.bin", "C:\\evil"], "backslash"),
        (["openvino_model.xml", "openvino_model.bin", "a.txt", "A.txt"], "differ only in case"),
        (["a-q8_0.gguf", "a-q2_k.gguf"], "allow_patterns"),
    ],
)
async def test_what_cannot_be_served_is_refused_before_the_download(puller, hub, repo, files, words):
    hub.add("me/model", dict.fromkeys(files, repo / "config.json"))
    with pytest.raises(BadRequest, match=words):
        await puller.ingest.pull(REF)
    assert hub.requests == []
    assert puller.store.staging() == []
    assert not (puller.settings.data_dir.parent / "evil").exists()


def gguf_repo(folder: Path, names: list[str], header: bytes) -> dict[str, Path]:
    file = folder / "any.gguf"
    file.write_bytes(header + bytes(200_000))
    return dict.fromkeys(names, file)


async def test_gguf_is_pulled_for_text_generation(puller, hub, tmp_path):
    names = ["m-Q2_K.gguf", "m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf", "README.md"]
    hub.add("me/model", gguf_repo(tmp_path, names, gguf_header()))
    model = await puller.ingest.pull(REF)
    assert (model.model_type, model.format) == ("text_generation", "gguf")
    assert (model.family, model.quantization, model.parameter_size) == ("llama", "Q4_K_M", "135M")
    assert not (model.directory / "m-Q2_K.gguf").exists()
    assert 'models_path: "./m-Q4_K_M-00001-of-00002.gguf"' in (model.directory / "graph.pbtxt").read_text()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (gguf_header("gemma3"), r"architecture gemma3.*llama, qwen2, qwen3 only"),
        (gguf_header(tensors=(F32, Q5_0, Q4_K)), r"type Q5_0, which OpenVINO does not read.*Q4_K_M"),
        (gguf_header(tensors=(F32, BF16), file_type=32), r"weights of type BF16, which OpenVINO does not read"),
        (b"<html>", "not a GGUF file"),
    ],
)
async def test_gguf_that_the_engine_cannot_load_is_refused_before_the_download(puller, hub, tmp_path, header, words):
    hub.add("me/model", gguf_repo(tmp_path, ["m.gguf"], header))
    with pytest.raises(BadRequest, match=words):
        await puller.ingest.pull(REF)
    assert [request.path for request in hub.requests] == ["m.gguf"], "its header and nothing more"
    assert puller.store.staging() == []


async def test_a_hub_that_lists_pointers_is_found_out(puller, hub, repo):
    (repo / BIG).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 41\n")
    hub.add("me/model", repo)
    with pytest.raises(BadRequest, match=rf"{BIG} is a Git LFS pointer.*git lfs pull"):
        await puller.ingest.pull(REF)
    assert puller.store.list() == []


async def test_weights_that_are_shorter_than_the_graph_says_are_found_out(puller, hub, fixtures, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(fixtures / "embeddings", cut)
    (cut / BIG).write_bytes((cut / BIG).read_bytes()[:-1])
    hub.add("me/model", cut)
    with pytest.raises(BadRequest, match=rf"{BIG} has \d+ bytes and openvino_model\.xml needs \d+"):
        await puller.ingest.pull(REF)
    with pytest.raises(BadRequest, match=rf"{BIG} has \d+ bytes"):
        await puller.ingest.import_(cut, "me/model")


async def test_a_contradiction_is_an_error_before_the_weights(puller, hub, repo):
    hub.add("me/model", repo)
    with pytest.raises(BadRequest, match=r"type speech_to_text.*type text_generation"):
        await puller.ingest.pull(REF, model_type="speech_to_text")
    assert all(each.path != BIG for each in hub.requests)
    assert puller.store.staging() == []
    await puller.ingest.pull(REF, model_type="text_generation")
    with pytest.raises(BadRequest, match="installed here as type text_generation"):
        await puller.ingest.pull(REF, model_type="embeddings")


async def test_a_mistake_costs_nothing_of_an_earlier_pull(make_puller, hub, repo):
    hub.add("me/model", repo)
    puller = make_puller(retries=0)
    hub.fault(BIG, *[Fault("cut", 300_000)] * 8, *[Fault("status", 500)] * 20)
    with pytest.raises(Unavailable):
        await puller.ingest.pull(REF)
    hub.faults.clear()
    present = (await puller.ingest.plan(REF)).present
    with pytest.raises(BadRequest, match="type speech_to_text"):
        await puller.ingest.pull(REF, model_type="speech_to_text")
    assert (await puller.ingest.plan(REF)).present == present > 300_000


class Guard:
    def __init__(self):
        self.plans = []

    @hookimpl
    def ovms_before_pull(self, model, plan):
        self.plans.append(plan)
        if plan.total > 1_000_000:
            raise Refused("Nothing that large.")


async def test_a_wrong_option_is_an_error_before_the_weights(puller, hub, repo):
    hub.add("me/model", repo)
    with pytest.raises(BadRequest, match="max_num_sqs is not an option"):
        await puller.ingest.pull(REF, options={"max_num_sqs": 1})
    assert all(each.path != BIG for each in hub.requests)
    assert puller.store.staging() == []


async def test_extensions_see_the_plan_and_may_veto(puller, hub, repo):
    guard = Guard()
    puller.events.register({"guard": guard})
    hub.add("me/model", repo)
    with pytest.raises(Refused, match="Nothing that large"):
        await puller.ingest.pull(REF)
    assert puller.store.staging() == []
    assert guard.plans[0].present == 0
    assert {file.path for file in guard.plans[0].files} >= {BIG, "config.json"}
    assert hub.requests == []


async def test_the_disk_is_asked_before_the_first_byte(puller, hub, repo, monkeypatch):
    hub.add("me/model", repo)
    usage = shutil.disk_usage(repo)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(PreconditionFailed, match="on disk"):
        await puller.ingest.pull(REF)
    assert puller.store.staging() == []
    assert hub.requests == []


async def test_a_path_that_windows_cannot_open_is_refused_before_the_first_byte(puller, hub, repo, monkeypatch):
    hub.add("me/model", repo)
    monkeypatch.setattr(files, "path_limit", lambda: len(str(puller.settings.models_dir)) + 20)
    with pytest.raises(PreconditionFailed, match=r"Pulling me/model needs a path of \d+ characters .* shorter folder"):
        await puller.ingest.pull(REF)
    with pytest.raises(PreconditionFailed, match="Importing me/other needs a path of"):
        await puller.ingest.import_(repo, "me/other")
    assert puller.store.staging() == []
    assert hub.requests == []


@pytest.mark.skipif(os.name != "nt", reason="only Windows limits the length of paths")
async def test_a_file_whose_path_has_more_characters_than_windows_opens_is_refused(puller, hub, repo):
    deep = "/".join(["a-folder-with-a-long-name"] * 9)
    (repo / deep).mkdir(parents=True)
    (repo / deep / "config.json").write_text("{}")
    hub.add("me/model", repo)
    with pytest.raises(PreconditionFailed, match="and Windows allows 240"):
        await puller.ingest.pull(REF)


async def test_an_unknown_hub_is_named(puller):
    with pytest.raises(NotSupported, match=r"'elsewhere'.*installed: modelscope"):
        await puller.ingest.pull(ModelRef("me/model", hub="elsewhere"))


async def test_a_damaged_record_is_made_anew_by_a_pull(puller, hub, repo):
    hub.add("me/model", repo)
    model = await puller.ingest.pull(REF)
    (model.directory / ".ovms-plugin.json").write_text("{")
    await puller.ingest.pull(REF)
    assert_whole(puller, repo)


async def test_a_pull_beside_a_stopped_one_does_not_wait_without_end(make_puller, hub, repo, monkeypatch):
    hub.add("me/model", repo)
    monkeypatch.setattr(staging, "STUCK", 0.5)
    one, other = make_puller(), make_puller()
    async with one.store.hold("me/model"):
        with anyio.fail_after(10), pytest.raises(TimedOut, match=r"holds me/model and has made no progress.*end that"):
            await other.ingest.pull(REF)


@pytest.mark.needs_posix  # there is no such limit
async def test_a_pull_of_many_files_opens_a_few_at_a_time(puller, hub, repo):
    import resource

    for number in range(300):
        (repo / f"part{number}.txt").write_bytes(b"x" * 100)
    hub.add("me/model", repo)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = max(int(each.name) for each in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (now + 80, hard))
    try:
        await puller.ingest.pull(REF)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_whole(puller, repo)


async def test_a_listing_of_more_files_than_a_model_has_is_refused(puller, hub, repo):
    listed = hub.add("me/model", repo)
    listed += [listed[-1] | {"Path": f"f{number}.txt"} for number in range(10_000)]
    with pytest.raises(BadRequest, match="more than the 10000 that a model may have"):
        await puller.ingest.pull(REF)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["openvino_model.xml", "openvino_model.bin", "a", "a/b"], "as a file and as a folder"),
        (["openvino_model.xml", "openvino_model.bin", "cafe\u0301.txt", "caf\u00e9.txt"], "case or composition"),
    ],
)
async def test_listings_that_no_disk_can_hold_are_refused(puller, hub, repo, paths, words):
    hub.add("me/model", dict.fromkeys(paths, repo / "config.json"))
    with pytest.raises(BadRequest, match=words):
        await puller.ingest.pull(REF)


async def test_a_listing_with_a_negative_size_is_refused(puller, hub, repo):
    hub.add("me/model", repo)[-1]["Size"] = -1
    with pytest.raises(BadRequest, match="-1 bytes, which no file has"):
        await puller.ingest.pull(REF)


# -- kills ---------------------------------------------------------------------------------------------------------

PULL = """
import os, sys
import anyio, modelscope_hub, requests, filelock, urllib3, certifi
from pathlib import Path
from ovms_hub_modelscope import ModelScope
from ovms_kernel.testing.contract import configured
from ovms_kernel.compose import compose_models
from ovms_kernel.events import Events
from ovms_kernel.extensions import compose
from ovms_kernel.settings import Settings
from ovms_kernel.values import Host, ModelRef

data, url, part_size = sys.argv[1:]
settings = Settings(Path(data))
host = Host(os="linux", machine="x86_64", memory=16 << 30)
drivers = compose(settings, host, kinds=("graphs",))
hub = configured(ModelScope, **{"endpoint": url, "part_size": part_size, "retry_delay": 0.01})
ingest = compose_models(settings, Events(), {"modelscope": hub}, drivers.graphs, host).ingest
hub._client()
print("ready", flush=True)
# One child for each line, so that a kill costs no start of an interpreter.
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            anyio.run(lambda: ingest.pull(ModelRef(line.strip())))
            status = 0
        finally:
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Zygote:
    """Starts pulls in processes of their own, quickly."""

    def __init__(self, tmp_path: Path, data: Path, url: str, part_size: int) -> None:
        script = tmp_path / "pull.py"
        script.write_text(PULL)
        command = [sys.executable, str(script), str(data), url, str(part_size)]
        started: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = started
        assert self.process.stdout.readline() == "ready\n"

    def pull(self, model_id: str, kill_after: float | None) -> int:
        self.process.stdin.write(model_id + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                end_by_force(pid)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def written_and_noted(staging: Path, repo: Path) -> tuple[int, int]:
    """Return the bytes of the weights that really are in the growing file, and those that the journal knows."""
    for journal in (staging / "files" / PARTIAL).glob("*.journal"):
        data = journal.with_suffix(".data").read_bytes() if journal.with_suffix(".data").exists() else b""
        truth = (repo / BIG).read_bytes()
        content = journal.read_bytes()
        if len(data) != len(truth) or len(content) < HEADER.size:
            continue
        _, part_size = HEADER.unpack_from(content)
        counts = [each[0] for each in COUNT.iter_unpack(content[HEADER.size :])]
        written = 0
        for index, count in enumerate(counts):
            start = index * part_size
            part, right = data[start : start + part_size], truth[start : start + part_size]
            assert part[:count] == right[:count], "the journal knows no byte that is not there"
            step, there = 1024, count
            while there < len(right) and part[there : there + step] == right[there : there + step]:
                there += step
            written += min(there, len(right))
        return written, sum(counts)
    return 0, 0


@pytest.mark.needs_posix  # processes are forked here
def test_kills_at_random_moments(make_world, hub, tmp_path, repo, fixtures):
    part_size = 1 << 20
    chance = random.Random(2026)
    (repo / BIG).write_bytes(chance.randbytes(30_000_000))
    size = sum(each.stat().st_size for each in repo.rglob("*") if each.is_file())
    hub.add("me/model", repo)
    world = make_world()
    growing = staging.staging_folder(world.settings, "me/model")
    zygote = Zygote(tmp_path, world.settings.data_dir, hub.url, part_size)
    wasted, interrupted = 0, 0
    try:
        for _ in range(KILLS):
            hub.rate = chance.choice([100_000, 1_000_000, 3_000_000])
            code = zygote.pull("me/model", chance.uniform(0, 0.2))
            interrupted += code == ENDED_BY_FORCE
            written, noted = written_and_noted(growing, repo)
            assert written - noted <= part_size, "more than one part would be fetched twice"
            wasted = max(wasted, written - noted)
            if world.store.list():
                assert_whole(world, repo)
        hub.rate = 0
        assert zygote.pull("me/model", None) == 0
        assert_whole(world, repo)
        assert interrupted >= KILLS * 0.8
        assert hub.sent <= size + interrupted * part_size
        # The other moments: recognising, writing the graph and the note, publishing.
        small = {name: repo / name for name in ("openvino_model.xml", "config.json")}
        small["openvino_model.bin"] = fixtures / "text_generation" / "openvino_model.bin"
        hub.add("me/small", small)
        for _ in range(KILLS // 3):
            zygote.pull("me/small", chance.uniform(0, 0.06))
            for model in (each for each in world.store.list() if each.id == "me/small"):
                assert all(
                    (model.directory / name).stat().st_size == path.stat().st_size for name, path in small.items()
                )
            assert zygote.pull("me/small", None) == 0
            asyncio.run(world.store.delete("me/small"))
    finally:
        zygote.close()
    assert [each.id for each in world.store.list()] == ["me/model"]
    assert not growing.exists()
