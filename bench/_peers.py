"""What people use instead, called directly. Takes orders on standard input; runs in a Python that has the peers.

    python bench/_peers.py which
    python bench/_peers.py sentence-transformers|fastembed FOLDER      an embeddings model of _real_models.py
    python bench/_peers.py llama-cpp-python FILE                       its GGUF file

The models have the same shapes, but weights of 32 bits for the first two, as their users get them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

MODULES = {"sentence-transformers": "sentence_transformers", "fastembed": "fastembed", "llama-cpp-python": "llama_cpp"}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
PROMPT = [{"role": "user", "content": "Count to fifty"}]


def installed() -> list[str]:
    """Return the peers that this Python has; the model of fastembed is exported with transformers and onnx."""
    found = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    exports = all(map(importlib.util.find_spec, ("transformers", "onnx")))
    return [name for name in found if name != "fastembed" or exports]


def _encoder(folder: Path) -> Path:
    """Write a BERT with random weights for sentence-transformers beside a model folder, unless it is there."""
    target = folder / "peer"
    if (target / "done").exists():
        return target
    import torch
    from transformers import BertConfig, BertModel

    shutil.rmtree(target, ignore_errors=True)
    torch.manual_seed(0)
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
    BertModel(config).save_pretrained(target)
    for name in TOKENIZER:
        shutil.copy(folder / name, target)
    parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, path) in enumerate(parts.items())
    ]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    for path in filter(None, parts.values()):
        (target / path).mkdir()
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
    (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (target / "done").touch()
    return target


def _exported(folder: Path) -> Path:
    """Write the same BERT as ONNX, unless it is there."""
    target = _encoder(folder)
    if not (target / "model.onnx").exists():
        import torch
        from transformers import BertModel

        class Plain(torch.nn.Module):  # type: ignore[misc]
            def __init__(self, model: Any) -> None:  # noqa: ANN401 - the peers have no types here
                super().__init__()
                self.model = model

            def forward(self, ids: Any, mask: Any, kinds: Any) -> Any:  # noqa: ANN401
                return self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).last_hidden_state

        model = Plain(BertModel.from_pretrained(target, attn_implementation="eager").eval())
        names = ["input_ids", "attention_mask", "token_type_ids"]
        example = torch.ones((2, 8), dtype=torch.int64)
        part = target / "model.part"
        torch.onnx.export(
            model, (example, example, torch.zeros_like(example)), str(part), input_names=names,
            output_names=["last_hidden_state"], dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
            dynamo=False,
        )  # fmt: skip
        part.rename(target / "model.onnx")
    return target


class SentenceTransformers:
    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(_encoder(folder)), device="cpu")

    def embed(self, texts: list[str]) -> dict[str, float]:
        began = time.perf_counter()
        self._model.encode(texts).tolist()
        return {"rate": len(texts) / (time.perf_counter() - began)}


class Fastembed:
    def __init__(self, folder: Path) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        target = _exported(folder)
        size = json.loads((target / "config.json").read_text())["hidden_size"]
        TextEmbedding.add_custom_model(
            "bench/encoder", PoolingType.MEAN, normalization=True, sources=ModelSource(url="none"), dim=size,
            model_file="model.onnx",
        )  # fmt: skip
        self._model = TextEmbedding("bench/encoder", specific_model_path=str(target))

    def embed(self, texts: list[str]) -> dict[str, float]:
        began = time.perf_counter()
        found = [each.tolist() for each in self._model.embed(texts)]
        assert len(found) == len(texts)
        return {"rate": len(texts) / (time.perf_counter() - began)}


class LlamaCpp:
    def __init__(self, file: Path) -> None:
        from llama_cpp import Llama

        # Its own default is half of the processors.
        self._model = Llama(str(file), n_ctx=512, n_threads=os.cpu_count(), verbose=False)
        self._never_ends = {self._model.token_eos(): -1e9}

    def stream(self, tokens: int) -> dict[str, float]:
        began = time.perf_counter()
        for _ in self._model.create_chat_completion(
            PROMPT, max_tokens=tokens, temperature=0, stream=True, logit_bias=self._never_ends
        ):
            pass
        return {"rate": tokens / (time.perf_counter() - began)}


def main() -> None:
    if sys.argv[1] == "which":
        print(json.dumps(installed()))
        return
    kinds = {"sentence-transformers": SentenceTransformers, "fastembed": Fastembed, "llama-cpp-python": LlamaCpp}
    servable = kinds[sys.argv[1]](Path(sys.argv[2]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(servable, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
