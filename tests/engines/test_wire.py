"""Messages survive whatever pieces a pipe makes of them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ovms_embedded import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=4), max_size=5), st.integers(1, 40))
def test_any_cut(messages: list[list[object]], size: int) -> None:
    data = b"".join(wire.pack(each) for each in messages)
    unpacker = wire.Unpacker()
    got = [message for start in range(0, len(data), size) for message in unpacker.feed(data[start : start + size])]
    assert got == messages
