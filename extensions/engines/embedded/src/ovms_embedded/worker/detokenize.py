"""From the tokens of running requests to text, and never half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded import wire
from ovms_embedded.worker.byte_table import ByteTable

if TYPE_CHECKING:
    from ovms_embedded.worker.byte_table import Decoder
    from ovms_embedded.worker.pipe import Pipe

WINDOW = (8, 64)
"""Tokens that a stream decodes again with its new ones: at least, because how a token is written can depend on those
before it, and at most."""
REPLACEMENT = "\ufffd"
INCOMPLETE = 3
"""Bytes that the beginning of a character has at most; each is decoded as a U+FFFD, or all of them as one."""
TIDIED = 4
"""Characters behind a space that a decoder may still join with what is before it: ``do n't``."""


class TextStream:
    """The text of tokens that arrive some at a time; it alone knows which characters are complete.

    All pieces together are what the decoder makes of all tokens at once, however they are cut.

    :param special: whether special tokens are part of the text.
    """

    def __init__(self, *, special: bool) -> None:
        self._skip = not special
        self._window: list[int] = []
        """The last tokens; those before them are sent."""
        self._sent = 0
        """How many characters of the window's text are sent."""

    def push(self, tokens: list[int], decoder: Decoder, *, last: bool) -> str:
        """Return the text that is certain now, and not sent yet.

        :param last: no tokens follow.
        """
        self._window += tokens
        text = decoder.decode(self._window, skip_special_tokens=self._skip)
        end = len(text) if last else _settled(text, tidies=not isinstance(decoder, ByteTable))
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        least, most = WINDOW
        if len(self._window) > most and self._sent == len(text):
            # A window without text would begin anew, and the first space of a text is left out by some.
            kept = self._window[-least:]
            if before := decoder.decode(kept, skip_special_tokens=self._skip):
                self._window, self._sent = kept, len(before)
        return piece


def _settled(text: str, *, tidies: bool) -> int:
    """Return how many characters of a text no further token changes.

    :param tidies: the decoder may take spaces near the end away when it sees what follows.
    """
    end = max(len(text.rstrip(REPLACEMENT)), len(text) - INCOMPLETE)
    space = text.find(" ", max(0, len(text) - TIDIED), end) if tidies else -1
    return end if space < 0 else space


class Running:
    """A request that the pipeline knows: what it has produced, and what of that the client has."""

    def __init__(self, handle: Any, payload: dict[str, Any], prompt_tokens: int, returned: int) -> None:  # noqa: ANN401
        self.handle = handle
        self.stream: bool = payload["stream"]
        self.special: bool = payload["special"]
        self.logprobs: bool = payload["logprobs"]
        self.prompt_tokens = prompt_tokens
        self.returned = returned
        self.thinking = False
        """The prompt ends where reasoning begins."""
        self.ends: set[int] = set()
        """Tokens that end an output and are no part of it, even where special tokens are wanted."""
        self.urgent = self.stream
        """Nothing has reached the client yet."""
        self.finish: str | None = None
        self.count = 0
        self.fresh: list[int] = []
        """Tokens of a stream that nobody has decoded yet."""
        self.fresh_scores: list[float] = []
        """Their log probabilities, where they are wanted."""
        self.text = TextStream(special=self.special)
        self.sequences: dict[int, tuple[list[int], list[float]]] = {}
        self.finishes: dict[int, str] = {}
        self.scores: dict[int, float] = {}

    def read(self) -> None:
        """Take what the last steps produced."""
        handle = self.handle
        while handle.can_read():
            for sequence, output in handle.read().items():
                tokens = output.generated_ids
                self.count += len(tokens)
                if self.special and tokens and tokens[-1] in self.ends:
                    tokens = tokens[:-1]
                if self.stream:
                    self.fresh += tokens
                    if self.logprobs:
                        self.fresh_scores += output.generated_log_probs[: len(tokens)]
                else:
                    kept = self.sequences.setdefault(sequence, ([], []))
                    kept[0].extend(tokens)
                    if self.logprobs:
                        kept[1].extend(output.generated_log_probs)
                    self.scores[sequence] = output.score
                if reason := output.finish_reason.value:
                    self.finishes[sequence] = "stop" if reason == 1 else "length" if reason == 2 else "tool_calls"
        if handle.get_status().value:
            self.finish = next(iter(self.finishes.values()), "unknown")


def flush(running: dict[int, Running], decoder: Decoder, pipe: Pipe) -> None:
    """Send what there is to say about every running request, and forget those that are finished."""
    ready: list[tuple[int, Running]] = []
    finished: list[int] = []
    for number, each in running.items():
        each.read()
        if each.stream and (each.fresh or each.finish):
            ready.append((number, each))
        if each.finish:
            finished.append(number)
    if ready and (items := _pieces(ready, decoder)):
        pipe.send([wire.ITEMS, items])
    for number in finished:
        each = running.pop(number)
        usage: dict[str, Any] = {
            "thinking": each.thinking,
            "prompt_tokens": each.prompt_tokens,
            "completion_tokens": each.count,
        }
        if each.stream:
            pipe.send([wire.END, number, usage | {"finish_reason": each.finish}])
        else:
            pipe.send([wire.END, number, usage | {"choices": _choices(each, decoder)}])


def _pieces(ready: list[tuple[int, Running]], decoder: Decoder) -> list[list[Any]]:
    """Return the new text of each stream that has any; with its tokens, where their probabilities are wanted."""
    items: list[list[Any]] = []
    for number, each in ready:
        tokens, each.fresh = each.fresh, []
        piece = each.text.push(tokens, decoder, last=bool(each.finish))
        scores, each.fresh_scores = each.fresh_scores, []
        if words := _words(tokens, scores, decoder):
            items.append([number, [piece, words]])
        elif piece:
            items.append([number, piece])
        each.urgent = each.urgent and not piece
    return items


def _words(tokens: list[int], scores: list[float], decoder: Decoder) -> list[list[Any]]:
    """Return text, log probability and bytes of each token; a token may hold a part of a character only."""
    table = decoder.whole if isinstance(decoder, ByteTable) else None
    found: list[list[Any]] = []
    for token, score in zip(tokens, scores, strict=False):
        text = decoder.decode([token], skip_special_tokens=False)
        found.append([text, score, table[token] if table and token < len(table) else text.encode()])
    return found


def _choices(each: Running, decoder: Decoder) -> list[dict[str, Any]]:
    best = sorted(each.sequences, key=lambda sequence: -each.scores[sequence])[: each.returned]
    choices: list[dict[str, Any]] = []
    for sequence in best:
        text = decoder.decode(each.sequences[sequence][0], skip_special_tokens=not each.special)
        choice: dict[str, Any] = {"text": text, "finish_reason": each.finishes.get(sequence, each.finish)}
        if each.logprobs:
            choice["logprobs"] = _words(*each.sequences[sequence], decoder)
        choices.append(choice)
    return choices or [{"text": "", "finish_reason": each.finish}]
