"""Text from tokens: no character is lost, whatever tokenizer, and however many tokens arrive at once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

genai = pytest.importorskip("openvino_genai")

from ovms_embedded.worker.byte_cache import find_decoder  # noqa: E402 - after the check above
from ovms_embedded.worker.byte_table import ByteTable, decoder_for  # noqa: E402 - after the check above
from ovms_embedded.worker.detokenize import TextStream  # noqa: E402

if TYPE_CHECKING:
    from ovms_embedded.worker.byte_table import Decoder

HERE = Path(__file__).parent
TABLES = ("byte_level", "gemma", "llama", "word_piece")
"""Tokenizers whose text is the bytes of their tokens in a row."""
OTHERS = ("byte_level_clean_up", "sentencepiece")
SCRIPTS = "aé ñ'.,!?ßЖяשمสวั你好本한글カ　—“”…\u200d🎉😀👩🏽‍🚀🇩🇪\n\t "
TEXTS = st.text(st.one_of(st.sampled_from(SCRIPTS), st.characters(exclude_categories=["Cs"])), max_size=60)
CUTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@cache
def load(name: str) -> tuple[Any, Decoder]:
    tokenizer = genai.Tokenizer(HERE / "tokenizers" / name)
    return tokenizer, decoder_for(tokenizer)


def streamed(tokens: list[int], cuts: list[int], decoder: Decoder, *, special: bool = False) -> tuple[str, list[str]]:
    """Return the pieces of a stream, whose tokens arrive as many at once as the cuts say, again and again."""
    stream, pieces, at, number = TextStream(special=special), [], 0, 0
    while at < len(tokens):
        step = cuts[number % len(cuts)]
        number += 1
        pieces.append(stream.push(tokens[at : at + step], decoder, last=at + step >= len(tokens)))
        at += step
    return "".join(pieces), pieces


def collapsed(text: str) -> str:
    """Return a text in which any number of U+FFFD is one: that depends on who decodes what is no UTF-8."""
    return re.sub("\ufffd+", "\ufffd", text)


def ids(tokenizer: Any, text: str) -> list[int]:
    return [int(each) for each in tokenizer.encode([text, "a"], add_special_tokens=False).input_ids.data[0]]


@pytest.mark.parametrize("name", TABLES)
def test_vocabularies_of_bytes_become_tables(name: str) -> None:
    assert isinstance(load(name)[1], ByteTable)


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokenizers_stay_with_the_library(name: str) -> None:
    tokenizer, decoder = load(name)
    assert decoder is tokenizer


@pytest.mark.parametrize("name", TABLES + OTHERS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, cuts=CUTS)
@example(text="日本語と한국어 mixed 🎉😀🚀", cuts=[1])
@example(text="I do n't know . It 's 'm , yes ? ! ' quoted ' end", cuts=[1])
@example(text="🎉" * 40, cuts=[1, 7])
@example(text=" leading and  double  spaces ", cuts=[2])
def test_a_stream_is_the_whole_answer_however_it_is_cut(name: str, text: str, cuts: list[int]) -> None:
    tokenizer, decoder = load(name)
    tokens = ids(tokenizer, text)
    whole = tokenizer.decode(tokens) if tokens else ""
    assert streamed(tokens, cuts, decoder)[0] == whole
    assert streamed(tokens, cuts, decoder, special=True)[0] == (
        tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""
    )


@pytest.mark.parametrize("name", TABLES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), cuts=CUTS)
def test_any_tokens_are_decoded_as_the_library_does(name: str, data: st.DataObject, cuts: list[int]) -> None:
    tokenizer, decoder = load(name)
    size = max(tokenizer.get_vocab().values())
    tokens = data.draw(st.lists(st.integers(0, size), min_size=1, max_size=90))
    for special in (True, False):
        whole = decoder.decode(tokens, skip_special_tokens=not special)
        assert streamed(tokens, cuts, decoder, special=special)[0] == whole
        assert collapsed(whole) == collapsed(tokenizer.decode(tokens, skip_special_tokens=not special))


def test_only_the_incomplete_end_is_held_back() -> None:
    tokenizer, decoder = load("byte_level")
    text = "日本🎉"
    tokens = ids(tokenizer, text)
    _, pieces = streamed(tokens, [len(tokens) - 1], decoder)
    assert pieces == ["日本", "🎉"]
    halved = [*ids(tokenizer, "日本")[:-1], *ids(tokenizer, "x")]
    assert streamed(halved, [1], decoder)[0] == "日\ufffdx"


def test_bytes_that_never_become_a_character_do_not_hold_the_text_back() -> None:
    tokenizer, decoder = load("byte_level")
    lone = tokenizer.get_vocab()[b"\x9f"]
    stream = TextStream(special=False)
    sent = sum(len(stream.push([lone], decoder, last=False)) for _ in range(50))
    assert sent == 50 - 3


def test_a_tokenizer_that_writes_other_words_than_its_vocabulary_stays_with_the_library() -> None:
    class Capitals:
        """The library, if it wrote capitals."""

        def __init__(self) -> None:
            self._inner = genai.Tokenizer(HERE / "tokenizers" / "byte_level")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def decode(self, rows: Any, **options: Any) -> Any:
            found = self._inner.decode(rows, **options)
            return [each.upper() for each in found] if isinstance(found, list) else found.upper()

    tokenizer = Capitals()
    assert decoder_for(tokenizer) is tokenizer


@pytest.mark.parametrize("name", TABLES)
def test_a_kept_table_is_the_one_that_was_made(name: str, tmp_path: Path) -> None:
    tokenizer, made = load(name)
    folder = HERE / "tokenizers" / name
    assert isinstance(made, ByteTable)
    for _ in range(2):
        found = find_decoder(tokenizer, folder, str(tmp_path / "cache"))
        assert isinstance(found, ByteTable)
        assert (found.whole, found.plain, found.strips) == (made.whole, made.plain, made.strips)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_kept_table_spares_the_questions_and_a_damaged_one_does_not_count(tmp_path: Path) -> None:
    folder = HERE / "tokenizers" / "byte_level"
    tokenizer, made = load("byte_level")
    assert isinstance(made, ByteTable)
    find_decoder(tokenizer, folder, str(tmp_path))
    (kept,) = tmp_path.iterdir()
    assert isinstance(find_decoder(None, folder, str(tmp_path)), ByteTable), "nothing is asked of the tokenizer"
    content = kept.read_bytes()
    for damaged in (b"", content[:-1], content[:40] + b"?" + content[41:], b"\x00" * 64):
        kept.write_bytes(damaged)
        found = find_decoder(tokenizer, folder, str(tmp_path))
        assert isinstance(found, ByteTable)
        assert found.whole == made.whole
        assert kept.read_bytes() == content


def test_it_is_kept_too_that_the_library_decodes(tmp_path: Path) -> None:
    folder = HERE / "tokenizers" / OTHERS[0]
    tokenizer, _ = load(OTHERS[0])
    assert find_decoder(tokenizer, folder, str(tmp_path)) is tokenizer
    mark = object()
    assert find_decoder(mark, folder, str(tmp_path)) is mark


def test_another_tokenizer_has_a_table_of_its_own(tmp_path: Path) -> None:
    for name in TABLES:
        find_decoder(load(name)[0], HERE / "tokenizers" / name, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == len(TABLES)
    blocked = tmp_path / "file"
    blocked.touch()
    assert isinstance(find_decoder(load("llama")[0], HERE / "tokenizers" / "llama", str(blocked)), ByteTable)
