"""A model that answers nonsense on a device is noticed, told of and loaded on another device."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ovms_kernel.compose import compose_kernel
from ovms_kernel.errors import EngineFailed, NotSupported, OvmsError
from ovms_kernel.events import Events
from ovms_kernel.hookspecs import hookimpl
from ovms_kernel.models import judge
from ovms_kernel.models.passport import Key, PassportEntry, Passports
from ovms_kernel.models.vetting import Questions, Vetting, verdict
from ovms_kernel.settings import read_settings
from ovms_kernel.values import Answer, Host, LocalModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from ovms_kernel.kernel import Kernel
    from ovms_kernel.values import Upload

ROUNDS = int(os.environ.get("OVMS_PASSPORT_ROUNDS", "6"))
"""Probes and loads of each tiny model that must raise no alarm; 1 000 in the nightly mode."""
MODEL = LocalModel("me/m", Path(), "text_generation", 1, "ab" * 32, datetime.now(UTC))
GOOD, BAD = "one two three four five six", "!!!!!!!!!!!!!!!!!!!!!!!!"


class Heard:
    def __init__(self) -> None:
        self.suspects: list[tuple[str, str, str]] = []

    @hookimpl
    async def ovms_model_suspect(self, model: LocalModel, device: str, cause: str) -> None:
        self.suspects.append((model.id, device, cause))


@dataclass
class Machine:
    """An engine whose devices answer as told, and what was done to it."""

    folder: Path
    says: dict[str, str]
    usual: str
    fixed: bool = False
    """Its graph is edited, so that nothing changes the device."""
    refuses: str = ""
    """The device on which nothing loads."""
    done: list[str] = field(default_factory=list)
    device: str = ""

    def __post_init__(self) -> None:
        self.heard, events = Heard(), Events()
        events.register({"test": self.heard})
        questions = {"text_generation": Questions("/v3/chat/completions", "text", ('{"a":1}', '{"a":2}', '{"a":3}'))}
        devices = ("CPU", "GPU", "NPU")
        self.passports = Passports(self.folder)
        self.vetting = Vetting(self.passports, questions, events, devices, self.key, self.connect)

    def key(self, device: str) -> Key:
        return Key("2026.4", device, "" if device == "CPU" else "driver 1")

    async def connect(self) -> Any:
        return self

    async def upload(self, path: str, fields: Mapping[str, Any], files: Mapping[str, Upload]) -> Answer:
        raise NotSupported("Nothing is uploaded here.")

    async def post(self, path: str, body: bytes) -> Answer:
        self.done.append("ask")
        return Answer(json.dumps({"choices": [{"message": {"content": self.says[self.device]}}]}).encode())

    async def write(self, device: str) -> str:
        self.device = self.usual if self.fixed or not device else device
        return self.device

    async def serve(self) -> None:
        if self.device == self.refuses:
            raise EngineFailed(f"no memory on {self.device}")
        self.done.append(f"load on {self.device}")

    async def load(self) -> str:
        self.done.clear()
        return await self.vetting.place(MODEL, self.write, self.serve)

    def loads(self) -> list[str]:
        return [each.removeprefix("load on ") for each in self.done if each != "ask"]


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    def make(usual: str = "GPU", says: dict[str, str] | None = None, **more: Any) -> Machine:
        return Machine(tmp_path / "passports", {"CPU": GOOD, "GPU": GOOD, "NPU": GOOD} | (says or {}), usual, **more)

    return make


async def test_a_good_device_is_compared_once_and_then_costs_nothing(machine: Callable[..., Machine]) -> None:
    good = machine()
    assert await good.load() == ""
    assert good.loads() == ["CPU", "GPU"]
    assert await good.load() == ""
    assert good.done == ["load on GPU"]
    again = machine()
    assert await again.load() == ""
    assert again.done == ["load on GPU"], "it is remembered"


async def test_a_cpu_is_only_loaded_on(machine: Callable[..., Machine]) -> None:
    cpu = machine("CPU")
    assert await cpu.load() == ""
    assert cpu.done == ["load on CPU"]


async def test_a_bad_device_is_left_for_the_next_one_and_never_tried_again(machine: Callable[..., Machine]) -> None:
    bad = machine(says={"GPU": BAD})
    assert "answers a text that repeats itself" in await bad.load()
    assert bad.loads() == ["CPU", "GPU", "NPU"]
    assert [each[:2] for each in bad.heard.suspects] == [("me/m", "GPU")]
    assert "on GPU" in await bad.load()
    assert bad.done == ["load on NPU"]
    worse = machine(says={"GPU": BAD, "NPU": BAD})
    worse.passports.forget(MODEL.digest)
    said = await worse.load()
    assert "on GPU" in said
    assert "on NPU" in said
    assert worse.loads()[-1] == "CPU"
    assert len(worse.heard.suspects) == 2


async def test_another_driver_is_another_chance(machine: Callable[..., Machine], monkeypatch: Any) -> None:
    bad = machine(says={"GPU": BAD})
    await bad.load()
    bad.says["GPU"] = GOOD
    monkeypatch.setattr(bad.vetting, "_key_of", lambda device: Key("2026.4", device, "" if device == "CPU" else "2"))
    assert await bad.load() == ""
    assert bad.loads() == ["GPU"]


async def test_an_edited_graph_keeps_its_device_and_the_fault_is_told(machine: Callable[..., Machine]) -> None:
    edited = machine(says={"GPU": BAD}, fixed=True)
    edited.passports.note(MODEL.digest, MODEL.id, PassportEntry(edited.key("CPU"), ({"text": GOOD},) * 3))
    assert "on GPU" in await edited.load()
    assert set(edited.loads()) == {"GPU"}
    assert edited.heard.suspects


async def test_a_model_that_does_not_fit_the_cpu_is_not_compared(machine: Callable[..., Machine]) -> None:
    large = machine(refuses="CPU")
    assert await large.load() == ""
    assert large.loads() == ["GPU"]


async def test_a_device_that_does_not_load_is_an_error_as_ever(machine: Callable[..., Machine]) -> None:
    broken = machine(refuses="GPU")
    with pytest.raises(OvmsError, match="no memory on GPU"):
        await broken.load()


async def test_a_probe_finds_what_went_wrong_later_and_sees_it_heal(machine: Callable[..., Machine]) -> None:
    good = machine()
    await good.load()
    assert await good.vetting.probe(MODEL, "GPU", good)
    assert not good.heard.suspects
    good.says["GPU"] = BAD
    assert await good.vetting.probe(MODEL, "GPU", good)
    assert [each[1] for each in good.heard.suspects] == ["GPU"]
    assert "on GPU" in await good.load()
    good.says["GPU"], good.device = GOOD, "GPU"
    assert await good.vetting.probe(MODEL, "GPU", good)
    healed = good.passports.find(MODEL.digest, good.key("GPU"))
    assert healed
    assert not healed.fault


def test_a_damaged_passport_is_made_again(tmp_path: Path) -> None:
    passports = Passports(tmp_path)
    key = Key("1", "GPU", "d")
    passports.note("ab" * 32, "me/m", PassportEntry(key, ({"text": "x"},)))
    assert Passports(tmp_path).find("ab" * 32, key) == passports.find("ab" * 32, key)
    [file] = tmp_path.iterdir()
    for damage in (b"", b"{", b"[]", b'{"version":1,"entries":[{"key":5}]}', b'{"version":1,"entries":7}'):
        file.write_bytes(damage)
        assert Passports(tmp_path).entries("ab" * 32) == []
    passports.note("ab" * 32, "me/m", PassportEntry(key, ()))
    assert len(Passports(tmp_path).entries("ab" * 32)) == 1


# -- with real models --------------------------------------------------------------------------------------------------


TYPES = ("text_generation", "embeddings", "rerank", "text_to_speech", "speech_to_text", "image_generation")


@pytest.fixture(scope="module")
async def kernel(tmp_path_factory: pytest.TempPathFactory, fixtures: Path, inference: None) -> AsyncIterator[Kernel]:
    settings = read_settings({}, data_dir=tmp_path_factory.mktemp("vetting") / "data", platform="portable")
    async with compose_kernel(settings, host=Host("linux", "x86_64")) as kernel:
        await kernel.install_engine()
        for kind in TYPES:
            await kernel.import_model(fixtures / kind, f"tiny/{kind}")
            await kernel.load_model(f"tiny/{kind}")
        yield kernel


@pytest.fixture
def heard(kernel: Kernel) -> Heard:
    heard = Heard()
    kernel.register(f"test {id(heard)}", heard)
    return heard


async def test_every_kind_of_model_answers_what_it_is_asked_and_answers_it_again(kernel: Kernel) -> None:
    vetting: Any = kernel.supervisor.probe._ask.__self__  # type: ignore[attr-defined]
    client = await kernel.control.client()
    kinds = set()
    for model in await kernel.list_models():
        asked = vetting._questions[model.model_type]
        kinds.add(asked.kind)
        first, second = [await vetting._answers(model, asked, client) for _ in range(2)]
        assert not [each for each in first if judge.UNREADABLE in each]
        assert verdict(asked.kind, second, first, same=True) == ""
        if asked.kind == "words":
            assert first[0]["words"], "it heard nothing"
    assert kinds == judge.KINDS


async def test_good_models_raise_no_alarm(kernel: Kernel, heard: Heard) -> None:
    vetting: Any = kernel.supervisor.probe._ask.__self__  # type: ignore[attr-defined]
    for _ in range(ROUNDS):
        client = await kernel.control.client()
        for model in await kernel.list_models():
            assert await vetting.probe(model, "CPU", client) is not False
    for number in range(ROUNDS):
        name = f"tiny/{TYPES[number % len(TYPES)]}"
        await kernel.unload_models([name])
        await kernel.load_model(name)
        assert await vetting.probe(await kernel.load_model(name), "CPU", await kernel.control.client()) is not False
    assert heard.suspects == []
    asked = [
        each for each in await kernel.list_models() if each.model_type not in ("speech_to_text", "image_generation")
    ]
    assert all(len(kernel.passports.entries(each.digest)) == 1 for each in asked)


def said(change: Callable[[str], str]) -> Callable[[Any], None]:
    """Change the text of an answer."""

    def turn(answer: Any) -> None:
        message = answer["choices"][0]["message"]
        message["content"] = change(message["content"])

    return turn


def vectors(change: Callable[[list[list[float]]], list[Any]]) -> Callable[[Any], None]:
    """Change the vectors of an answer."""

    def turn(answer: Any) -> None:
        for each, vector in zip(answer["data"], change([each["embedding"] for each in answer["data"]]), strict=True):
            each["embedding"] = vector

    return turn


def swap_scores(answer: Any) -> None:
    first, second = answer["results"]
    first["index"], second["index"] = second["index"], first["index"]


GARBAGE: dict[str, tuple[str, Callable[[Any], None]]] = {
    "repetition": ("text_generation", said(lambda text: text[:1] * 40)),
    "another model's answers": ("text_generation", said(lambda _: "Grass is green, and the sky is blue.")),
    "shifted tokens": ("text_generation", said(lambda text: "".join(chr(ord(each) + 1) for each in text))),
    "truncated": ("text_generation", said(lambda text: text[: len(text) // 2])),
    "empty": ("text_generation", said(lambda _: "")),
    "not a number": ("embeddings", vectors(lambda all_: [[None] * len(each) for each in all_])),
    "zeros": ("embeddings", vectors(lambda all_: [[0.0] * len(each) for each in all_])),
    "constant": ("embeddings", vectors(lambda all_: [[0.125] * len(each) for each in all_])),
    "swapped order": ("embeddings", vectors(lambda all_: all_[::-1])),
    "swapped scores": ("rerank", swap_scores),
    "no answer's shape": ("rerank", lambda answer: answer.clear()),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_of_a_real_model_is_found_by_one_probe(kernel: Kernel, heard: Heard, kind: str) -> None:
    model_type, turn = GARBAGE[kind]
    vetting: Any = kernel.supervisor.probe._ask.__self__  # type: ignore[attr-defined]
    model = next(each for each in await kernel.list_models() if each.model_type == model_type)
    client = await kernel.control.client()
    for _ in range(3):  # the first notes what is good, and each question has its turn
        assert await vetting.probe(model, "CPU", client)
    assert heard.suspects == []

    class Broken:
        async def post(self, path: str, body: bytes, **more: Any) -> Answer:
            answer = json.loads((await client.post(path, body, **more)).body)
            turn(answer)
            return Answer(json.dumps(answer).encode())

    assert await vetting.probe(model, "CPU", Broken())
    assert [each[:2] for each in heard.suspects] == [(model.id, "CPU")]
    assert await vetting.probe(model, "CPU", client)
    assert not [each for each in kernel.passports.entries(model.digest) if each.fault], "it is sound again"


async def test_a_model_that_turns_to_garbage_is_shown_in_ps(kernel: Kernel, heard: Heard) -> None:
    vetting: Any = kernel.supervisor.probe._ask.__self__  # type: ignore[attr-defined]
    models = {each.model_type: each for each in await kernel.list_models()}
    model = models["text_generation"]
    client = await kernel.control.client()
    assert await vetting.probe(model, "CPU", client)

    class Broken:
        async def post(self, path: str, body: bytes, **more: Any) -> Answer:
            answer = json.loads((await client.post(path, body, **more)).body)
            answer["choices"][0]["message"]["content"] = "\u0000" * 12
            return Answer(json.dumps(answer).encode())

    assert await vetting.probe(model, "CPU", Broken())
    assert [each[:2] for each in heard.suspects] == [(model.id, "CPU")]
    shown = {each.model.id: each for each in await kernel.resident_models()}
    assert "on CPU" in shown[model.id].suspect
    assert shown[model.id].state == "loaded", "there is nothing better than the CPU"
