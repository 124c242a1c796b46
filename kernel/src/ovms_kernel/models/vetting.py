"""Sees that a model answers sense on the device that it runs on, and takes another device if it does not.

The first time that weights run on a device other than the CPU, they answer a few fixed requests there and on the CPU.
Later the same requests are asked now and then while nothing else is. ``judge.py`` compares, ``passport.py`` remembers.
"""

from __future__ import annotations

import base64
import json
import logging
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from ovms_kernel.errors import BadRequest, NotFound, NotSupported, OvmsError, TimedOut
from ovms_kernel.models import judge
from ovms_kernel.models.passport import CPU, Key, PassportEntry
from ovms_kernel.values import Upload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from ovms_kernel.drivers import Service
    from ovms_kernel.events import Events
    from ovms_kernel.models.judge import Sample
    from ovms_kernel.models.loader import Serve, Write
    from ovms_kernel.models.passport import Passports
    from ovms_kernel.values import Answer, LocalModel

log = logging.getLogger(__name__)

COSTLY = ("picture", "words")
"""Answers that take too much work to be asked for again and again."""
LIMIT = 120.0
"""Seconds that one answer may take."""


class Asked(Protocol):
    """The engine as far as it is asked fixed requests; ``engine/client.py`` is one."""

    async def upload(self, path: str, fields: Mapping[str, Any], files: Mapping[str, Upload]) -> Answer:
        """Send one multipart request and return the whole answer."""
        ...

    async def post(self, path: str, body: bytes) -> Answer:
        """Send one request and return the whole answer."""
        ...


class Questions(msgspec.Struct, frozen=True):
    """The fixed requests to models of one type."""

    endpoint: str
    kind: str
    """What the answers hold, see ``judge.sample``; empty = they are not compared."""
    bodies: tuple[str, ...]
    """JSON objects without ``model``."""


def questions_of(services: Iterable[Service]) -> dict[str, Questions]:
    """Return the fixed requests by model type, as the services declare them."""
    return {
        each.definition.model_type: Questions(
            each.definition.endpoint, each.definition.probe_answers, each.definition.probes
        )
        for each in services
        if each.definition.probes
    }


class Vetting:
    """Asks and remembers.

    :param devices: those of this machine.
    :param key_of: returns where a model runs, by the name of its device.
    :param connect: returns the connection to the engine.
    """

    def __init__(
        self,
        passports: Passports,
        questions: Mapping[str, Questions],
        events: Events,
        devices: Sequence[str],
        key_of: Callable[[str], Key],
        connect: Callable[[], Awaitable[Asked]],
    ) -> None:
        self.passports = passports
        self._questions = questions
        self._events = events
        self._devices = devices
        self._key_of = key_of
        self._connect = connect
        self._asked = 0

    async def place(self, model: LocalModel, write: Write, serve: Serve) -> str:
        """Load a model on the first device that is not known to answer nonsense, and see that it does not.

        :param write: writes its graph for a device, empty = the usual one, and returns the device that it names.
        :param serve: loads what was written.
        :return: what is wrong with a device that it could have run on; empty if nothing is.
        """
        device = await write("")
        tried: list[str] = []
        notes: list[str] = []
        while True:
            tried.append(device)
            if (fault := await self._known(model, device)) is None:
                fault, served = await self._compare(model, device, write, serve), True
            else:
                served = False
            following = self._after(tried) if fault else ""
            notes += [f"answers {fault} on {device}"] if fault else []
            if following and await write(following) != device:
                log.warning("Model %s answers %s on %s; it is loaded on %s", model.id, fault, device, following)
                device = following
                continue
            if not served:
                await serve()
            return "; ".join(notes)

    async def probe(self, model: LocalModel, device: str, client: Asked) -> bool | None:
        """Ask a model that is loaded one of the fixed requests.

        What is wrong with its answer is told as the event ``ovms_model_suspect``. The first answers on a CPU are what
        all later ones are compared with.

        :return: whether it answers at all; ``None`` if there is nothing to ask it, or it would take too long.
        """
        asked = self._questions.get(model.model_type)
        if asked is None or asked.kind in COSTLY:
            return None
        try:
            await self._probe(model, asked, device, client)
        except (BadRequest, NotFound, NotSupported) as error:
            log.debug("Probe of %s: %s", model.id, error.message)  # an answer, even if the request is wrong
        except OvmsError as error:
            log.warning("Model %s did not answer a small request: %s", model.id, error.message)
            return False
        return True

    async def _probe(self, model: LocalModel, asked: Questions, device: str, client: Asked) -> None:
        self._asked += 1
        at = self._asked % len(asked.bodies)
        if not asked.kind:
            await self._answer(model, asked, asked.bodies[at], client)
            return
        key = self._key_of(device)
        known = await self._entry(model, key)
        if key.device == CPU and (known is None or len(known.answers) != len(asked.bodies)):
            await self._note(model, PassportEntry(key, await self._answers(model, asked, client)))
            return
        found = await self._answer(model, asked, asked.bodies[at], client)
        if known is None or len(known.answers) != len(asked.bodies):
            return
        if _faults(asked.kind, [found], known.answers[at : at + 1], same=True):
            # With other work beside it, rounding may turn one answer, but not most of them.
            answers = await self._answers(model, asked, client)
            fault = verdict(asked.kind, answers, known.answers, same=True)
            if fault or known.fault:
                await self._judged(model, PassportEntry(key, known.answers, fault))
        elif known.fault:
            await self._note(model, PassportEntry(key, known.answers))

    async def _known(self, model: LocalModel, device: str) -> str | None:
        """Return what is known to be wrong with a model there; ``None`` if it has to be looked at."""
        entry = await self._entry(model, self._key_of(device))
        if entry is not None:
            return entry.fault
        asked = self._questions.get(model.model_type)
        return None if device != CPU and asked is not None and asked.kind else ""

    async def _compare(
        self,
        model: LocalModel,
        device: str,
        write: Write,
        serve: Serve,
    ) -> str:
        """Load a model on a device for the first time; return what is wrong with its answers."""
        asked = self._questions[model.model_type]
        reference = await self._entry(model, self._key_of(CPU))
        try:
            if reference is None and await write(CPU) == CPU:
                await serve()
                reference = PassportEntry(self._key_of(CPU), await self._answers(model, asked, await self._connect()))
                await self._note(model, reference)
        except OvmsError as error:
            log.info(
                "Model %s cannot be asked on the CPU, so its answers are not compared: %s", model.id, error.message
            )
        await write(device)
        await serve()
        try:
            answers = await self._answers(model, asked, await self._connect())
        except (BadRequest, NotFound, NotSupported):
            return ""  # the request does not suit it, which says nothing about the device
        known = reference.answers if reference else ()
        fault = verdict(asked.kind, answers, known, same=False) if known else ""
        await self._judged(model, PassportEntry(self._key_of(device), answers if not fault else known, fault))
        return fault

    def _after(self, tried: Sequence[str]) -> str:
        """Return the device to try next; empty if there is none."""
        ordered = [*(each for each in self._devices if each != CPU), CPU]
        return next((each for each in ordered if each not in tried), "") if CPU not in tried else ""

    async def _judged(self, model: LocalModel, entry: PassportEntry) -> None:
        await self._note(model, entry)
        if entry.fault:
            device = entry.key.device
            log.error("Model %s answers %s on %s", model.id, entry.fault, device)
            await self._events.tell("ovms_model_suspect", model=model, device=device, cause=entry.fault)

    async def _answers(self, model: LocalModel, asked: Questions, client: Asked) -> tuple[Sample, ...]:
        return tuple([await self._answer(model, asked, each, client) for each in asked.bodies])

    async def _answer(self, model: LocalModel, asked: Questions, body: str, client: Asked) -> Sample:
        fields = json.loads(body) | {"model": model.id}
        try:
            with anyio.fail_after(LIMIT):
                if (sound := fields.pop("file", None)) is None:
                    answer = await client.post(asked.endpoint, json.dumps(fields).encode())
                else:
                    upload = Upload("probe.mp3", base64.b64decode(sound), "audio/mpeg")
                    answer = await client.upload(asked.endpoint, fields, {"file": upload})
        except TimeoutError as error:
            raise TimedOut(f"{model.id} did not answer a small request within {LIMIT:g} s.") from error
        if not asked.kind:
            return {}
        try:
            return judge.sample(asked.kind, answer.body)
        except ValueError as error:
            return {judge.UNREADABLE: str(error)}

    async def _entry(self, model: LocalModel, key: Key) -> PassportEntry | None:
        return await anyio.to_thread.run_sync(self.passports.find, model.digest, key)

    async def _note(self, model: LocalModel, entry: PassportEntry) -> None:
        try:
            await anyio.to_thread.run_sync(self.passports.note, model.digest, model.id, entry)
        except OSError as error:
            log.warning("What %s answers cannot be kept: %s", model.id, error)


def verdict(kind: str, found: Sequence[Sample], known: Sequence[Sample], *, same: bool) -> str:
    """Return what is wrong with most of a model's answers; empty if nothing is."""
    faults = _faults(kind, found, known, same=same)
    return faults[0] if 2 * len(faults) > len(known) else ""


def _faults(kind: str, found: Sequence[Sample], known: Sequence[Sample], *, same: bool) -> list[str]:
    pairs = zip(found, known, strict=True)
    return [each for each in (judge.fault(kind, one, other, same=same) for one, other in pairs) if each]
