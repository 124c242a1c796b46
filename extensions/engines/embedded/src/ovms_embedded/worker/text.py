"""Text generation: one ContinuousBatchingPipeline, stepped by this process's only busy thread."""

from __future__ import annotations

import queue
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ovms_embedded import wire
from ovms_embedded.worker import common, detection, drafts, grammar, templates
from ovms_embedded.worker.byte_cache import find_decoder
from ovms_embedded.worker.detokenize import Running, flush
from ovms_embedded.worker.grammars import COMPILED, REFUSED, Grammars
from ovms_embedded.worker.pipe import Refused, tidy
from ovms_embedded.worker.text_pipeline import build, draft_kind, generation_config, sees

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe

FLUSH = (0.004, 0.002, 0.02)
"""Seconds between two messages about streams: at least, for each stream, at most. A first token goes out at once.

It only matters to models that step faster than that: the others flush with every step.
"""
SLOW = "The JSON schema or the tools of the request take too much time or memory to compile; make them smaller"
Message = list[Any]


class Text:
    """Requests join between two steps, share every step, and leave as soon as they are finished or cancelled."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        self.pipe = pipe
        self.spec = spec
        self.folder = common.models_path(spec)
        self.vision = sees(self.folder)
        self.device = common.device(spec, pipe, "device")
        self.draft = draft_kind(spec)
        self.drafts = bool(self.draft or spec["options"]["properties"].get("prompt_lookup"))
        self.defaults = common.read_json(self.folder / "generation_config.json")
        self.pipeline = build(spec, self.folder, self.device, self.draft, pipe)
        self.tokenizer = self.pipeline.get_tokenizer()
        template = templates.find(self.folder, self.tokenizer)
        self.decoder = find_decoder(self.tokenizer, self.folder, spec["cache_dir"])
        self.window = common.window(self.folder)
        self.running: dict[int, Running] = {}
        self.urgent: list[Running] = []
        """Running streams of which nothing has reached the client yet."""
        self.waiting: deque[Message] = deque()
        self.grammars = Grammars(self.tokenizer, self.folder, pipe.inbox)
        parsers = detection.parsers(spec["options"], template["template"] or template["tool_template"], pipe)
        self.info = parsers | {"vision": self.vision, "chat_template": template}

    def run(self) -> None:
        """Take calls and step, for ever."""
        self.pipe.listen()
        inbox = self.pipe.inbox
        due = 0.0
        while True:
            if not self.pipeline.has_non_finished_requests():
                self._flush()
                if not self.waiting:
                    with suppress(queue.Empty):
                        self._take(inbox.get(timeout=self.grammars.pause()))
            while not inbox.empty():
                self._take(inbox.get())
            for number in self.grammars.overdue():
                self.pipe.send([wire.ERROR, number, wire.INVALID, SLOW])
            self._admit()
            if not self.pipeline.has_non_finished_requests():
                continue
            try:
                self.pipeline.step()
            except Exception as error:  # noqa: BLE001 - the pipeline is unusable after it, whatever it was
                self._recover(error)
                continue
            now = time.monotonic()
            if now >= due or (self.urgent and any(each.handle.can_read() for each in self.urgent)):
                self._flush()
                least, per_stream, most = FLUSH
                due = now + min(max(least, per_stream * len(self.running)), most)

    def _flush(self) -> None:
        flush(self.running, self.decoder, self.pipe)
        self.urgent = [each for each in self.running.values() if each.urgent]

    def _take(self, message: Message) -> None:
        if message[0] == wire.CANCEL:
            self._cancel(message[1])
        elif message[0] == COMPILED:
            _, sender, wanted, error = message
            if sender is not self.grammars:
                return
            if error:  # OVMS drops a schema that it cannot use
                self.pipe.log("error", "llm_calculator", f"A schema is ignored: {error}")
            self.waiting += self.grammars.settle(wanted, error)
        elif message[0] == REFUSED:
            if message[1] is self.grammars:
                for each in self.grammars.refuse(message[2]):
                    self.pipe.send([wire.ERROR, each[1], wire.INVALID, SLOW])
        else:
            _, number, operation, payload = message
            try:
                if operation == "generate":
                    self._receive(number, message, payload["grammar"])
                else:
                    self.pipe.send([wire.END, number, common.tokenize(self.tokenizer, payload, self.window)])
            except Refused as refused:
                self.pipe.send([wire.ERROR, number, refused.kind, str(refused)])

    def _cancel(self, number: int) -> None:
        self.pipe.cancelled.discard(number)
        self.grammars.leave(number)
        if running := self.running.pop(number, None):
            running.handle.cancel()
        self.waiting = deque(each for each in self.waiting if each[1] != number)
        self.pipe.send([wire.END, number, None])  # nobody takes it, but the watchdog sees that the call has ended

    def _receive(self, number: int, message: Message, wanted: str | None) -> None:
        if wanted and self.grammars.usable(wanted) is None:
            grammar.check(wanted)
            if self.grammars.is_refused(wanted):
                raise Refused(SLOW)
            self.grammars.hold(number, message, wanted)
        else:
            self.waiting.append(message)

    def _admit(self) -> None:
        while self.waiting and not (self.running and drafts.takes_one(self.draft)):
            _, number, _, payload = self.waiting.popleft()
            try:
                self._add(number, payload)
            except Refused as refused:
                self.pipe.send([wire.ERROR, number, refused.kind, str(refused)])
            except Exception as error:  # noqa: BLE001 - what the library says about this request's parameters
                self.pipe.send([wire.ERROR, number, wire.INVALID, tidy(error)])

    def _add(self, number: int, payload: dict[str, Any]) -> None:
        prompt = payload["prompt"]
        chat = payload["chat"]  # then the template has written the special tokens
        tokens = common.encode_prompt(self.tokenizer, prompt, self.window, add_special_tokens=not chat)
        length = tokens.shape[1]
        if not length:
            text = "Prompt is empty after tokenization"
            raise Refused(text)
        drafts.check_request(payload, self.draft)
        payload["settings"] = drafts.without_tree(payload["settings"], self.device)
        if self.drafts:
            payload["settings"] |= drafts.amount(payload["settings"], self.defaults, self.draft)
        config = generation_config(
            self.pipeline.get_config(), payload, self.spec["options"], length, self.window,
            greedy=drafts.is_greedy(self.draft),
        )  # fmt: skip
        if payload["grammar"] and self.grammars.usable(payload["grammar"]):
            config.structured_output_config = grammar.structured_output(payload["grammar"])
        if self.vision:
            from ovms_embedded.worker import pictures  # nothing of Pillow for the others

            # The library puts the images where their tags are; their tokens do not count, as in OVMS.
            handle = self.pipeline.add_request(number, prompt, pictures.tensors(payload["images"]), config)
        elif self.draft == drafts.MTP:  # tokens would be taken for embeddings
            handle = self.pipeline.add_request(number, prompt, config)
        else:
            handle = self.pipeline.add_request(number, tokens, config)
        running = Running(handle, payload, length, config.num_return_sequences)
        running.thinking = chat and prompt.rstrip().endswith("<think>")
        running.ends = set(config.stop_token_ids) | {config.eos_token_id}
        self.running[number] = running
        if payload["stream"]:
            self.urgent.append(running)
            self.pipe.send([wire.ITEMS, [[number, running.thinking]]])

    def _recover(self, error: Exception) -> None:
        """Fail what runs and make the pipeline anew."""
        self.pipe.log("error", "llm_executor", f"A step failed, the pipeline is made anew: {tidy(error)}")
        for number in self.running:
            self.pipe.send([wire.ERROR, number, wire.INTERNAL, f"Generation failed: {tidy(error)}"])
        self.running.clear()
        self.urgent.clear()
        del self.pipeline
        self.pipeline = build(self.spec, self.folder, self.device, self.draft, self.pipe)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.grammars = self.grammars.renewed(self.tokenizer)


def load(spec: dict[str, Any], pipe: Pipe) -> Text:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Text(spec, pipe)
