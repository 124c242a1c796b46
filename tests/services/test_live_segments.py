"""Cutting speech into sentences, decoding frames, and texts that do not flicker: pure functions of their input."""

import io
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ovms_kernel.errors import BadRequest
from ovms_service_speech_to_text_ws.pcm import Decoder
from ovms_service_speech_to_text_ws.segments import (
    BEGIN_BLOCKS,
    BLOCK,
    LATE_BLOCKS,
    LONGEST_BLOCKS,
    PADDING_BLOCKS,
    PAUSE_BLOCKS,
    RATE,
    Segmenter,
)
from ovms_service_speech_to_text_ws.stabilizer import steady, words
from ovms_service_speech_to_text_ws.vad import Detector


def block(value):
    return np.full(BLOCK, value % 30000, np.int16)


def cut(likely):
    """Push blocks that carry their own number, and return the sentences."""
    segmenter = Segmenter()
    found = [segmenter.push(block(number), each) for number, each in enumerate(likely)]
    return [each for each in [*found, segmenter.finish()] if each]


def ms(blocks):
    return blocks * BLOCK * 1000 // RATE


def test_a_sentence_has_its_times_and_its_sound_with_padding():
    (sentence,) = cut([0] * 20 + [1] * 30 + [0] * 40)
    assert (sentence.begin, sentence.end) == (ms(20), ms(50))
    numbers = sentence.sound[::BLOCK].tolist()
    assert numbers == list(range(20 - PADDING_BLOCKS, 50 + PADDING_BLOCKS))


def test_a_short_pause_does_not_end_a_sentence_and_a_long_one_does():
    assert len(cut([1] * 10 + [0] * (PAUSE_BLOCKS - 1) + [1] * 10 + [0] * 40)) == 1
    first, second = cut([1] * 10 + [0] * PAUSE_BLOCKS + [1] * 10 + [0] * 40)
    assert (first.end, second.begin, second.number) == (ms(10), ms(10 + PAUSE_BLOCKS), 1)


def test_clicks_are_no_speech():
    assert cut(([1] * (BEGIN_BLOCKS - 1) + [0] * 5) * 20) == []


def test_doubtful_blocks_keep_a_sentence_going_but_begin_none():
    assert cut([0.4] * 100) == []
    (sentence,) = cut([1] * 5 + [0.4] * 50 + [0] * 30)
    assert sentence.end == ms(55)


def test_what_is_being_said_at_the_end_is_a_sentence():
    (sentence,) = cut([0] * 5 + [1] * 10)
    assert (sentence.begin, sentence.end) == (ms(5), ms(15))


def test_endless_speech_is_cut_where_it_is_least_like_speech():
    likely = [1.0] * (LONGEST_BLOCKS + 200)
    weakest = LONGEST_BLOCKS - LATE_BLOCKS // 2
    likely[weakest] = 0.6
    first, second = cut(likely)
    assert first.end == second.begin == ms(weakest)
    assert np.concatenate([first.sound, second.sound])[::BLOCK].tolist() == list(range(len(likely)))


@given(st.lists(st.floats(0, 1), max_size=400))
def test_sentences_are_in_order_and_never_overlap(likely):
    sentences = cut(likely)
    edges = [each for sentence in sentences for each in (sentence.begin, sentence.end)]
    assert edges == sorted(edges)
    assert all(sentence.begin < sentence.end <= ms(len(likely)) for sentence in sentences)
    assert [sentence.number for sentence in sentences] == list(range(len(sentences)))


def test_hours_of_it_keep_nothing():
    segmenter = Segmenter()
    for number in range(50_000):
        segmenter.push(block(number), 1.0 if number % 100 < 40 else 0.0)
    assert len(segmenter._blocks) + len(segmenter._before) < LONGEST_BLOCKS


# -- frames ---------------------------------------------------------------------------------------------------------

SOUND = (np.random.default_rng(1).standard_normal(5 * BLOCK + 100) * 1000).astype("<i2")


def decode(decoder, data, sizes):
    blocks, at = [], 0
    for size in sizes:
        blocks += decoder.push(data[at : at + size])
        at += size
    blocks += decoder.push(data[at:])
    return np.concatenate([*blocks, *decoder.finish()])


@given(st.lists(st.integers(0, 3000), max_size=20))
def test_frames_may_have_any_size(sizes):
    heard = decode(Decoder(RATE), SOUND.tobytes(), sizes)
    assert len(heard) % BLOCK == 0
    assert (heard[: len(SOUND)] == SOUND).all()
    assert not heard[len(SOUND) :].any()


def as_wav(samples, rate, channels=1, width=2):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())
    return buffer.getvalue()


@given(st.lists(st.integers(0, 3) | st.integers(4, 3000), max_size=8))
def test_a_wav_tells_its_own_rate_and_channels(sizes):
    stereo = np.repeat(SOUND, 2)
    heard = decode(Decoder(8000), as_wav(stereo, RATE, channels=2), sizes)
    assert (heard[: len(SOUND)] == SOUND).all()


def test_each_frame_may_be_a_wav():
    decoder = Decoder(RATE)
    blocks = [*decoder.push(as_wav(SOUND, RATE)), *decoder.push(as_wav(SOUND, RATE))]
    assert (np.concatenate(blocks)[: 2 * len(SOUND)] == np.concatenate([SOUND, SOUND])[: len(blocks) * BLOCK]).all()


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_a_wav_may_have_samples_of_any_kind(form, kind):
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND / 32768, RATE, format=form, subtype=kind)
    heard = decode(Decoder(8000), buffer.getvalue(), [7] * 20)[: len(SOUND)].astype(int)
    assert np.abs(heard - SOUND).max() <= (256 if kind == "PCM_U8" else 1)


def test_other_wavs_are_refused():
    with pytest.raises(BadRequest, match="8 to 32 bits or floats"):
        list(Decoder(RATE).push(as_wav(SOUND, RATE, channels=9)))
    with pytest.raises(BadRequest, match="damaged"):
        list(Decoder(RATE).push(b"RIFF" + bytes(100_000)))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled_without_seams(rate):
    tone = (np.sin(np.arange(rate) * 2 * np.pi * 440 / rate) * 10000).astype("<i2")
    heard = decode(Decoder(rate), tone.tobytes(), [333] * 200)
    assert len(heard) == pytest.approx(RATE, abs=BLOCK)
    spectrum = np.abs(np.fft.rfft(heard[1000:15000].astype(float) * np.hanning(14000)))
    assert spectrum.argmax() * RATE / 14000 == pytest.approx(440, abs=2)
    assert np.sort(spectrum)[-10] < spectrum.max() / 100, "a seam would spread over the spectrum"


def test_the_detector_hears_speech_and_neither_noise_nor_hum(fixtures):
    detector = Detector()
    with wave.open(str(fixtures / "speech_to_text_samples" / "en_turn_on_the_light.wav")) as file:
        speech = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    likely = [detector.likely(each) for each in speech[: len(speech) // BLOCK * BLOCK].reshape(-1, BLOCK)]
    assert max(likely[10:38]) > 0.9
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE * 3) / RATE
    for noise in (
        rng.standard_normal(RATE * 3) * 300,
        rng.standard_normal(RATE * 3) * 6000,
        np.sin(seconds * 2 * np.pi * 50) * 3000,
        np.zeros(RATE * 3),
    ):
        detector.reset()
        likely = [detector.likely(each) for each in noise.astype(np.int16)[: 93 * BLOCK].reshape(-1, BLOCK)]
        assert max(likely) < 0.5


# -- texts ----------------------------------------------------------------------------------------------------------


def test_words():
    assert words("Turn on, the LIGHT!") == ["turn", "on", "the", "light"]
    assert words("你好, world。") == ["你", "好", "world"]


def shown(*hypotheses):
    """Return what a client sees, one after the other."""
    seen, previous = [""], ""
    for heard in hypotheses:
        seen.append(steady(seen[-1], previous, heard))
        previous = heard
    return seen[1:]


def test_a_text_grows():
    assert shown("one", "one two", "One two, three") == ["one", "one two", "One two, three"]
    assert shown("你", "你好", "你好吗") == ["你", "你好", "你好吗"]


def test_a_word_that_is_misheard_once_does_not_flicker():
    assert shown("turn on", "turnip", "turn on the") == ["turn on", "turn on", "turn on the"]
    assert shown("one two", "one", "one two three") == ["one two", "one two", "one two three"]


def test_a_word_that_is_heard_differently_twice_is_fixed():
    assert shown("two", "turn on", "turn on the") == ["two", "two", "turn on the"]
