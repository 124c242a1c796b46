"""openvino-genai called directly: what the embedded engine is measured against. Takes orders on standard input."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ovms_embedded.worker  # noqa: F401 - importing OpenVINO sends no usage event after it

PROMPT = [{"role": "user", "content": "Count to fifty"}]


class Text:
    def __init__(self, folder: Path) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        self.genai = genai
        self.pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {})
        self.tokenizer = self.pipeline.get_tokenizer()

    def _config(self, tokens: int) -> Any:  # noqa: ANN401 - the library has no stubs
        config = self.pipeline.get_config()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.apply_chat_template = False
        return config

    def _prompt(self) -> str:
        return str(self.tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True))

    def stream(self, tokens: int) -> dict[str, float]:
        """One streamed answer: tokens per second, and milliseconds to the first text."""
        first = 0.0
        began = time.perf_counter()

        def take(_: str) -> object:
            nonlocal first
            first = first or time.perf_counter()
            return self.genai.StreamingStatus.RUNNING

        self.pipeline.generate([self._prompt()], [self._config(tokens)], take)
        ended = time.perf_counter()
        return {"rate": tokens / (ended - began), "first": (first - began) * 1000}

    def streams(self, tokens: int, count: int) -> dict[str, float]:
        """Some answers together, each streamed as text, as a program without a server would do it."""
        config = self._config(tokens)
        written = 0

        def take(piece: str) -> object:
            nonlocal written
            written += len(piece)
            return self.genai.StreamingStatus.RUNNING

        began = time.perf_counter()
        handles = [self.pipeline.add_request(number, self._prompt(), config) for number in range(count)]
        writers = [self.genai.TextStreamer(self.tokenizer, take) for _ in handles]
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for handle, writer in zip(handles, writers, strict=True):
                while handle.can_read():
                    for output in handle.read().values():
                        writer.write(output.generated_ids)
        for writer in writers:
            writer.end()
        assert written
        return {"rate": tokens * count / (time.perf_counter() - began)}

    def together(self, tokens: int, count: int) -> dict[str, float]:
        """Some answers in one batch, not streamed: the most that the library can do."""
        began = time.perf_counter()
        self.pipeline.generate([self._prompt()] * count, [self._config(tokens)] * count)
        return {"rate": tokens * count / (time.perf_counter() - began)}


class Embeddings:
    def __init__(self, folder: Path) -> None:
        import openvino_genai as genai

        kinds = genai.TextEmbeddingPipeline
        config = kinds.Config(pooling_type=kinds.PoolingType.MEAN, normalize=True)
        self.pipeline = kinds(folder, "CPU", config)

    def embed(self, texts: list[str]) -> dict[str, float]:
        began = time.perf_counter()
        self.pipeline.embed_documents(texts)
        return {"rate": len(texts) / (time.perf_counter() - began)}


class Rerank:
    def __init__(self, folder: Path) -> None:
        import openvino_genai as genai

        config = genai.TextRerankPipeline.Config(top_n=1000, max_length=512)
        self.pipeline = genai.TextRerankPipeline(folder, "CPU", config)

    def rank(self, texts: list[str]) -> dict[str, float]:
        began = time.perf_counter()
        self.pipeline.rerank("Which animal sat on the mat?", texts)
        return {"rate": len(texts) / (time.perf_counter() - began)}


def main() -> None:
    servable = {"text_generation": Text, "embeddings": Embeddings, "rerank": Rerank}[sys.argv[1]](Path(sys.argv[2]))
    print("{}", flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(servable, name)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
