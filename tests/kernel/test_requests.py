"""What is admitted as a request."""

import pytest

from ovms_kernel.admission import decode_request
from ovms_kernel.errors import BadRequest


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "Expecting value"),
        (b"[1]", "not list"),
        (b"null", "not NoneType"),
        (b"[" * 100_000, "recursion"),
        (b'{"n":NaN}', "NaN is not a number"),
        (b'{"n":-Infinity}', "-Infinity is not a number"),
        (b'{"n":1e400}', "1e400 is not a number"),
        (b'{"text":"\\ud8"}', "Invalid .uXXXX escape"),
        (b'{"text":"\xed\xa0\xbd"}', "invalid continuation byte"),
        ('{"text":"x"}'.encode("utf-16"), "'utf-8' codec"),
    ],
)
def test_what_no_engine_can_read_is_refused_in_one_sentence(raw, cause):
    with pytest.raises(BadRequest, match=cause) as caught:
        decode_request(raw)
    assert "\n" not in caught.value.message
    caught.value.message.encode()


def test_characters_and_numbers_stay_what_they_are():
    halves = decode_request(rb'{"cut":"cat \ud83d","rest":"\ude00!","twice":"\ud83d\ud83d\ude00","\ud83d":"\\\ud83d"}')
    assert halves == {"cut": "cat \ufffd", "rest": "\ufffd!", "twice": "\ufffd😀", "\ufffd": "\\\ufffd"}
    said = decode_request(rb'{"escaped":"\ud83d\ude00","plain":"\\ud83d","n":[1e300,-0.5,123456789012345678901]}')
    assert said == {"escaped": "😀", "plain": "\\ud83d", "n": [1e300, -0.5, 123456789012345678901]}
