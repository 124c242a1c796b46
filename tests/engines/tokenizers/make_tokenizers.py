"""Build the tiny tokenizers of this folder: one of each kind in which models are published.

Nothing is downloaded. Pinned environment (Python 3.11); using the tokenizers needs none of it::

    python3 -m venv .fixtures-env
    .fixtures-env/bin/pip install openvino==2026.4.1 openvino-tokenizers==2026.4.1.0 transformers==4.57.6 \
        tokenizers==0.22.2 sentencepiece==0.2.3 protobuf==7.36.2
    .fixtures-env/bin/pip uninstall --yes openvino-telemetry  # else importing openvino reports to its makers
    .fixtures-env/bin/python tests/engines/tokenizers/make_tokenizers.py
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import openvino as ov
import sentencepiece
from openvino_tokenizers import convert_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).parent
TEXTS = [
    "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs.",
    "The quick brown fox jumps over the lazy dog. Don't stop: it's 3.14 o'clock, isn't it?",
    "def main(argv):\n    return 0  # nothing\n\n\tprint('hello, world')\n",
    "Привет, как дела? Всё хорошо, спасибо. ñandú façade Ærøskøbing naïve",
    "你好！很高兴见到你。今天天气很好，我们去公园吧。",
    "日本語のテキストです。東京は大きい都市です。안녕하세요, 반갑습니다. 한국어 문장입니다.",
    "مرحبا بالعالم שלום עולם สวัสดีชาวโลก",
] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 700


def byte_fallback(*, strips: bool) -> Tokenizer:
    """BPE with SentencePiece's space and a token for each byte. Llama 2 strips the first space, Gemma does not."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if strips else []), normalizers.Replace(" ", "▁")]
    )
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=tokens, limit_alphabet=90, show_progress=False)
    made.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strips else [])])
    # The bytes are ordinary tokens, only the others are special.
    changed = json.loads(made.to_str())
    changed["added_tokens"] = [each for each in changed["added_tokens"] if each["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(changed))


def byte_level() -> Tokenizer:
    """BPE of bytes, as of GPT-2, Llama 3 and Qwen, with a token that is special and one that is only added."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return made


def word_piece() -> Tokenizer:
    """WordPiece, whose decoder writes spaces between words and none before punctuation."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def unigram() -> bytes:
    """SentencePiece's own model, with bytes for what is not in the vocabulary."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=SIZE, model_type="unigram", byte_fallback=True,
        character_coverage=0.98, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


def save(name: str, tokenizer: Any, **options: Any) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kind, model in zip(
        ("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True, **options), strict=True
    ):
        ov.save_model(model, folder / f"openvino_{kind}.xml")


def main() -> None:
    fast = PreTrainedTokenizerFast
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    plain = {"clean_up_tokenization_spaces": False}
    save("llama", fast(tokenizer_object=byte_fallback(strips=True), **named, **plain))
    save("gemma", fast(tokenizer_object=byte_fallback(strips=False), **named, **plain))
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    save("byte_level", fast(tokenizer_object=byte_level(), **ends, **plain))
    save("byte_level_clean_up", fast(tokenizer_object=byte_level(), **ends, clean_up_tokenization_spaces=True))
    words = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    save("word_piece", fast(tokenizer_object=word_piece(), **words))
    path = HERE / "tokenizer.model"
    path.write_bytes(unigram())
    save("sentencepiece", LlamaTokenizer(str(path), legacy=False), use_sentencepiece_backend=True)
    path.unlink()


if __name__ == "__main__":
    main()
