"""Reranking: how well each document answers a query, long documents by their best part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openvino_genai as genai

from ovms_embedded.worker import common
from ovms_embedded.worker.pipe import Refused, serve

if TYPE_CHECKING:
    from ovms_embedded.worker.pipe import Pipe

DEFAULT_WINDOW = 512
TOKENS_AT_ONCE = 1 << 15
"""Tokens of one inference, with padding: thousands of documents at once would take more memory than there is."""
SPECIALS = 4
"""Tokens that a model puts around and between a query and a document, at most."""
EVERYTHING = 1 << 30


class Rerank:
    """One request at a time; all its documents are one inference, unless they are many."""

    def __init__(self, spec: dict[str, Any], pipe: Pipe) -> None:
        options = spec["options"]
        folder = common.models_path(spec)
        device = common.device(spec, pipe, "target_device")
        self.pipe = pipe
        self.window = options.get("max_position_embeddings") or common.window(folder) or DEFAULT_WINDOW
        self.chunks: int = options["max_allowed_chunks"]
        config = genai.TextRerankPipeline.Config(top_n=EVERYTHING, max_length=self.window)
        self.pipeline = genai.TextRerankPipeline(folder, device, config, **common.properties(spec))
        self.tokenizer = genai.Tokenizer(folder)
        self.info: dict[str, Any] = {}

    def run(self) -> None:
        """Take calls, for ever."""
        serve(self.pipe, {"rerank": self.rerank, "tokenize": lambda _, p: common.tokenize(self.tokenizer, p)})

    def rerank(self, _: int, payload: dict[str, Any]) -> list[tuple[int, float]]:
        """Return index and score of every document, best first."""
        query, documents = payload["query"], payload["documents"]
        if len(documents) > self.chunks:
            raise Refused(f"Number of documents exceeds max_allowed_chunks: {len(documents)} > {self.chunks}")
        room = self.window - SPECIALS
        if len(query.encode()) + max(len(each.encode()) for each in documents) <= room:
            return self._rank(query, documents)  # a token is at least one byte: it all fits
        encoded = self.tokenizer.encode([query, *documents], add_special_tokens=False)
        rows, mask = encoded.input_ids.data, encoded.attention_mask.data
        lengths: list[int] = mask.sum(axis=1).tolist()
        room -= lengths[0]
        if room <= 0:
            raise Refused(f"Query is too long: it leaves no room for a document within {self.window} tokens")
        parts: list[str] = []
        owners: list[int] = []
        for index, document in enumerate(documents):
            pieces = [document]
            if lengths[index + 1] > room:
                tokens = rows[index + 1][mask[index + 1] == 1].tolist()
                pieces = [self.tokenizer.decode(tokens[at : at + room]) for at in range(0, len(tokens), room)]
            parts += pieces
            owners += [index] * len(pieces)
        if len(parts) > self.chunks:
            raise Refused(f"Number of chunks exceeds max_allowed_chunks: {len(parts)} > {self.chunks}")
        best: dict[int, float] = {}
        for part, score in self._rank(query, parts):
            best[owners[part]] = max(score, best.get(owners[part], 0.0))
        return sorted(best.items(), key=lambda each: -each[1])

    def _rank(self, query: str, documents: list[str]) -> list[tuple[int, float]]:
        longest = min(len(query.encode()) + max(len(each.encode()) for each in documents), self.window)
        at_once = max(1, TOKENS_AT_ONCE // max(longest, 1))
        if len(documents) <= at_once:
            return list(self.pipeline.rerank(query, documents))
        ranked: list[tuple[int, float]] = []
        for start in range(0, len(documents), at_once):
            found = self.pipeline.rerank(query, documents[start : start + at_once])
            ranked += [(start + index, score) for index, score in found]
        return sorted(ranked, key=lambda each: -each[1])


def load(spec: dict[str, Any], pipe: Pipe) -> Rerank:
    """Load the graph's model; whatever the library throws is the reason why it does not serve."""
    return Rerank(spec, pipe)
