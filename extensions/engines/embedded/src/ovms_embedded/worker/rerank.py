"""Reranking: how well each document answers a query, long documents by their best part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openvino_genai as genai
from openvino import opset13 as ops

from ovms_embedded.worker import common
from ovms_embedded.worker.batching import Work, serve_batches
from ovms_embedded.worker.encoder import Encoder, answer, at_last_token, read
from ovms_embedded.worker.pipe import Refused

if TYPE_CHECKING:
    from pathlib import Path

    import openvino
    from numpy.typing import NDArray

    from ovms_embedded.worker.encoder import Tokens
    from ovms_embedded.worker.pipe import Pipe

DEFAULT_WINDOW = 512


class Template(NamedTuple):
    """The special tokens around a query and a document."""

    before: Tokens
    between: Tokens
    after: Tokens


class Rerank:
    """Requests share inferences.

    The library's own pipeline is not used: its tokenizer of pairs writes beyond its memory when a query is longer than
    the documents, and nothing says whether it has cut one.
    """

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        folder = common.models_path(spec)
        self.pipe = pipe
        self.window = options.get("max_position_embeddings") or common.window(folder) or DEFAULT_WINDOW
        self.chunks: int = options["max_allowed_chunks"]
        self.tokenizer = common.tokenizer_of(folder)
        self.template = _template(folder, self.tokenizer)
        self.specials = sum(map(len, self.template))
        if self.window <= 2 * self.specials:
            text = f"max_position_embeddings should be larger than 2 * {self.specials}, the number of special tokens"
            raise ValueError(text)
        self.encoder = Encoder(spec, pipe, self.tokenizer, partial(_logits, tokenizer=self.tokenizer))
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        serve_batches(self.pipe, self.encoder, {"rerank": self.rerank}, {"tokenize": self._tokenize})

    def rerank(self, number: int, payload: dict[str, Any]) -> Work:
        """Return the pairs' tokens, and how to make the ranking of their scores."""
        documents: list[str] = payload["documents"]
        if len(documents) > self.chunks:
            raise Refused(f"Number of documents exceeds max_allowed_chunks: {len(documents)} > {self.chunks}")
        for text in (payload["query"], *documents):
            common.check_length(text, self.window * self.chunks)
        check = partial(self.pipe.check, number)
        query, *bodies = read(self.tokenizer, [payload["query"], *documents], check, add_special_tokens=False)
        # OVMS cuts the query like this, too, and so leaves half of the window to the documents.
        head = np.concatenate([self.template.before, query[: self.window // 2], self.template.between])
        room = self.window - len(head) - len(self.template.after)
        owners: list[int] = []
        rows: list[Tokens] = []
        for index, body in enumerate(bodies):
            for at in range(0, max(1, len(body)), room):
                owners.append(index)
                rows.append(np.concatenate([head, body[at : at + room], self.template.after]))
        if len(rows) > self.chunks:
            raise Refused(f"Number of chunks exceeds max_allowed_chunks: {len(rows)} > {self.chunks}")
        return Work(rows, partial(_rank, owners=owners, count=len(documents)), len(head))

    def _tokenize(self, _: int, payload: dict[str, Any]) -> list[list[int]]:
        # OVMS never adds special tokens here: its pairs get them when they are put together.
        return common.tokenize(self.tokenizer, payload | {"add_special_tokens": False}, self.window)


def _rank(logits: NDArray[np.float32], *, owners: list[int], count: int) -> list[tuple[int, float]]:
    """Return index and score of every document, best first; a document's score is that of its best part."""
    best = [0.0] * count
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for index, score in zip(owners, scores.tolist(), strict=True):
        best[index] = max(score, best[index])
    return sorted(enumerate(best), key=lambda each: -each[1])


def _template(folder: Path, tokenizer: genai.Tokenizer) -> Template:
    """Return what a model puts around a pair: read off a pair of letters, whose tokens are known."""
    one, other = (_ids(tokenizer, letter) for letter in "ab")
    try:
        row = genai.Tokenizer(folder, add_second_input=True).encode(["a"], ["b"]).input_ids.data[0].tolist()
    except RuntimeError:  # of a model that knows no pairs: it reads the document right behind the query
        row = tokenizer.encode("a").input_ids.data[0].tolist()
        at = _find(one, row, 0)
        row[at + len(one) : at + len(one)] = other
    if row in (one, [*one, *other]):
        parts = _named(folder, tokenizer)
    else:
        first = _find(one, row, 0)
        second = _find(other, row, first + len(one))
        parts = row[:first], row[first + len(one) : second], row[second + len(other) :]
    return Template(*(np.array(part, np.int64) for part in parts))


def _named(folder: Path, tokenizer: genai.Tokenizer) -> tuple[list[int], list[int], list[int]]:
    """Return the special tokens by their names: OVMS exports tokenizers that add none, and puts them in itself."""
    config = common.read_json(folder / "tokenizer_config.json")
    tokens: dict[str, list[int]] = {}
    for name in ("bos", "cls", "eos", "sep"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        tokens[name] = _ids(tokenizer, text) if text else []
    if not tokens["sep"]:
        return [], [], []
    return tokens["bos"] or tokens["cls"], tokens["eos"] + tokens["sep"], tokens["eos"] or tokens["sep"]


def _ids(tokenizer: genai.Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    return ids


def _find(part: list[int], row: list[int], start: int) -> int:
    return next(at for at in range(start, len(row)) if row[at : at + len(part)] == part)


def _logits(model: openvino.Model, *, tokenizer: genai.Tokenizer) -> openvino.Node:
    """Return one number per text: the only logit of a classifier, or that of its second class.

    A language model is asked for its next token: how much rather it would say yes than no.
    """
    logits = answer(model)
    one, last = ops.constant(1, np.int64), ops.constant(-1, np.int64)
    if logits.get_partial_shape().rank == 2:
        return ops.gather(logits, last, one)
    vocabulary = tokenizer.get_vocab()
    words = [vocabulary.get(word) for word in (b"yes", b"no")]
    if None in words:
        message = "The model cannot rerank: it is no classifier, and the words yes and no are no tokens of its own"
        raise ValueError(message)
    yes, no = (ops.gather(at_last_token(model, logits), ops.constant(word, np.int64), one) for word in words)
    return ops.subtract(yes, no)


def load(spec: dict[str, Any], pipe: Pipe) -> Rerank:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Rerank(spec, pipe)
