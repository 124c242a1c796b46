"""From the tokens of running requests to text: in batches, and never half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovms_embedded import wire

if TYPE_CHECKING:
    import openvino_genai

    from ovms_embedded.worker.pipe import Pipe

CONTEXT = 6
"""Tokens before the new ones that are decoded with them: how a token is written can depend on its neighbours."""
PATIENCE = 8
"""Tokens to wait for the rest of a character; more than any character takes."""
REPLACEMENT = "\ufffd"


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
        self.context: list[int] = []
        self.fresh: list[int] = []
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


def flush(running: dict[int, Running], tokenizer: openvino_genai.Tokenizer, pipe: Pipe) -> None:
    """Send what there is to say about every running request, and forget those that are finished."""
    ready: list[tuple[int, Running]] = []
    finished: list[int] = []
    for number, each in running.items():
        each.read()
        if each.stream and each.fresh:
            ready.append((number, each))
        if each.finish:
            finished.append(number)
    if ready and (items := _pieces(ready, tokenizer)):
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
            pipe.send([wire.END, number, usage | {"choices": _choices(each, tokenizer)}])


def _pieces(ready: list[tuple[int, Running]], tokenizer: openvino_genai.Tokenizer) -> list[list[Any]]:
    """Return the new text of each stream: the text with its new tokens, without the text that it had."""
    rows: dict[bool, list[list[int]]] = {True: [], False: []}
    for _, each in ready:
        rows[each.special] += (each.context + each.fresh, each.context)
    texts = {special: iter(decode(tokenizer, batch, special=special)) for special, batch in rows.items() if batch}
    items: list[list[Any]] = []
    for number, each in ready:
        text, before = next(texts[each.special]), next(texts[each.special])
        if text.endswith(REPLACEMENT) and not each.finish and len(each.fresh) < PATIENCE:
            continue  # the middle of a character; the rest comes with the next tokens
        piece = text[len(before) :]
        each.context = (each.context + each.fresh)[-CONTEXT:]
        each.fresh = []
        if piece:
            each.urgent = False
            items.append([number, piece])
    return items


def decode(tokenizer: openvino_genai.Tokenizer, rows: list[list[int]], *, special: bool = False) -> list[str]:
    """Return the text of each row of tokens.

    :param special: whether special tokens are written out. The library pads a batch with special tokens, so only a
        batch without them can be decoded at once.
    """
    filled = [row for row in rows if row]
    if special or tokenizer.get_pad_token_id() < 0:
        texts = iter([tokenizer.decode(row, skip_special_tokens=not special) for row in filled])
    else:
        texts = iter(tokenizer.decode(filled) if filled else [])
    return [next(texts) if row else "" for row in rows]


def _choices(each: Running, tokenizer: openvino_genai.Tokenizer) -> list[dict[str, Any]]:
    best = sorted(each.sequences, key=lambda sequence: -each.scores[sequence])[: each.returned]
    texts = decode(tokenizer, [each.sequences[sequence][0] for sequence in best], special=each.special)
    choices: list[dict[str, Any]] = []
    for sequence, text in zip(best, texts, strict=True):
        choice: dict[str, Any] = {"text": text, "finish_reason": each.finishes.get(sequence, each.finish)}
        if each.logprobs:
            tokens, scores = each.sequences[sequence]
            words = decode(tokenizer, [[token] for token in tokens], special=True)
            choice["logprobs"] = list(zip(words, scores, strict=False))
        choices.append(choice)
    return choices or [{"text": "", "finish_reason": each.finish}]
