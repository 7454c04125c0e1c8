"""ray/client/wire.py and proof.py: what crosses a connection that breaks, and who may use it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray.client import proof, wire
from ray.client.wire import Malformed, Wire


def written(end: Wire) -> bytes:
    """All that end wants to write, taken at once."""
    out = b""
    while end.wants_write:
        piece = b"".join(bytes(b) for b in end.to_write())
        end.wrote(len(piece))
        out += piece
    return out


def fed(end: Wire, data: bytes) -> list[tuple[int, int, bytes]]:
    got = []
    while data:
        room = end.room()
        nbytes = min(len(room), len(data))
        room[:nbytes] = data[:nbytes]
        data = data[nbytes:]
        got += [(kind, stream, bytes(payload)) for kind, stream, payload in end.feed(nbytes)]
    return got


frames = st.lists(
    st.tuples(st.integers(1, 255), st.integers(0, 2**32 - 1), st.binary(max_size=200)), min_size=1, max_size=30
)


@given(frames, st.lists(st.integers(1, 60), max_size=50))
@settings(max_examples=60, deadline=None)
def test_frames_arrive_whole_and_in_order_however_the_bytes_are_cut(sent, cuts):
    here, there = Wire(), Wire()
    for frame in sent:
        here.send(*frame)
    data, got = written(here), []
    for cut in cuts:
        got += fed(there, data[:cut])
        data = data[cut:]
    got += fed(there, data)
    assert got == sent
    assert there.received == len(sent)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_nothing_is_lost_or_doubled_when_the_connection_breaks_anywhere(seed):
    chance = random.Random(seed)
    ends = [Wire(), Wire()]
    sent: list[list[bytes]] = [[], []]
    got: list[list[bytes]] = [[], []]
    for _ in range(60):
        for i, end in enumerate(ends):
            for _ in range(chance.randrange(4)):
                payload = chance.randbytes(chance.choice((0, 5, 300, 40_000)))
                sent[i].append(payload)
                end.send(7, i, payload)
        if chance.random() < 0.3:  # the connection breaks: bytes on their way are lost, also inside a frame
            for i in (0, 1):
                data = written(ends[i])
                arrived = data[: chance.randrange(len(data) + 1)]
                got[i] += [payload for _, _, payload in fed(ends[1 - i], arrived)]
            counts = [end.received for end in ends]
            ends[0].resume(counts[1])
            ends[1].resume(counts[0])
        else:
            for i in (0, 1):
                got[i] += [payload for _, _, payload in fed(ends[1 - i], written(ends[i]))]
    for i in (0, 1):
        got[i] += [payload for _, _, payload in fed(ends[1 - i], written(ends[i]))]
    assert got == sent


def test_what_was_acknowledged_is_not_kept():
    here, there = Wire(), Wire()
    for _ in range(wire.ACK_AFTER_FRAMES):
        here.send(3, 1, b"x" * 1000)
    fed(there, written(here))
    assert here._unacked_bytes > 0
    fed(here, written(there))
    assert here._unacked_bytes == 0 and not here._unacked


def test_a_wire_with_much_unacknowledged_says_that_it_is_congested():
    here, there = Wire(), Wire()
    while not here.congested:
        here.send(3, 1, bytes(wire.FRAME_BYTES_MAX))
    assert here._unacked_bytes < wire.UNACKED_BYTES_HIGH + 2 * wire.FRAME_BYTES_MAX
    fed(there, written(here))
    fed(here, written(there))
    assert not here.congested


@pytest.mark.parametrize(
    "data",
    [
        wire.HEADER.pack(wire.FRAME_BYTES_MAX + 1, 3, 0),
        wire.HEADER.pack(8, wire.ACK, 0) + wire.COUNT.pack(5),  # of frames that were never sent
        wire.HEADER.pack(3, wire.ACK, 0) + b"abc",
    ],
)
def test_a_malformed_frame_is_refused(data):
    with pytest.raises(Malformed):
        fed(Wire(), data)


def test_a_resumption_that_can_not_be_is_refused():
    with pytest.raises(Malformed):
        Wire().resume(1)


# --- proof.py ----------------------------------------------------------------------------------------------------

TOKEN, NONCE, OTHER = bytes(range(32)), b"s" * 32, b"c" * 32


def request(token: bytes = TOKEN) -> bytes:
    return proof.request(token, NONCE, OTHER, proof.RESUME, b"i" * 16, 77)


def test_both_ends_learn_what_the_other_said():
    for tls in (False, True):
        assert proof.read_challenge(proof.challenge(NONCE, tls)) == (NONCE, tls)
    assert proof.read_request(request(), TOKEN, NONCE) == (proof.RESUME, b"i" * 16, 77, OTHER)
    answer = proof.answer(TOKEN, NONCE, OTHER, proof.WELCOME, b"i" * 16, 9)
    assert proof.read_answer(answer, TOKEN, NONCE, OTHER) == (proof.WELCOME, b"i" * 16, 9)
    assert len(request()) == proof.REQUEST_BYTES and len(answer) == proof.ANSWER_BYTES


@pytest.mark.parametrize("at", [0, 9, 20, 50, 64, 75, proof.REQUEST_BYTES - 1])
def test_a_request_changed_on_its_way_is_refused(at):
    message = bytearray(request())
    message[at] ^= 1
    with pytest.raises(proof.Refused):
        proof.read_request(bytes(message), TOKEN, NONCE)


def test_a_request_of_another_token_or_to_another_challenge_is_refused():
    with pytest.raises(proof.Refused, match="token"):
        proof.read_request(request(bytes(32)), TOKEN, NONCE)
    with pytest.raises(proof.Refused):
        proof.read_request(request(), TOKEN, b"x" * 32)


def test_a_request_can_not_be_reflected_as_an_answer():
    answer = proof.answer(bytes(32), NONCE, OTHER, proof.WELCOME, b"i" * 16, 9)
    with pytest.raises(proof.Refused):
        proof.read_answer(answer, TOKEN, NONCE, OTHER)
    with pytest.raises(proof.Refused):
        proof.read_answer(request()[: proof.ANSWER_BYTES], TOKEN, NONCE, OTHER)


@given(st.binary(max_size=120), st.integers(0, 2))
def test_no_message_of_a_stranger_is_taken_for_a_proof(data, which):
    sizes = (proof.CHALLENGE_BYTES, proof.REQUEST_BYTES, proof.ANSWER_BYTES)
    right = (proof.challenge(NONCE), request(bytes(32)), proof.answer(bytes(32), NONCE, OTHER, 0, b"i" * 16, 9))[which]
    message = bytes(a ^ b for a, b in zip(right, data.ljust(sizes[which], b"\0")))
    try:
        if which == 0:
            nonce, tls = proof.read_challenge(message)
            assert len(nonce) == proof.NONCE_BYTES and tls in (False, True)
        elif which == 1:
            pytest.fail(f"taken for a proof: {proof.read_request(message, TOKEN, NONCE)}")
        else:
            pytest.fail(f"taken for a proof: {proof.read_answer(message, TOKEN, NONCE, OTHER)}")
    except proof.Refused:
        pass


chunks = st.binary(max_size=60) | st.tuples(
    st.sampled_from((0, 1, 7, 8, 9, 5000, wire.FRAME_BYTES_MAX, wire.FRAME_BYTES_MAX + 1, 2**32 - 1)),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=12),
).map(lambda f: wire.HEADER.pack(*f[:3]) + f[3])


@given(st.lists(chunks, max_size=12))
@settings(max_examples=200, deadline=None)
def test_bytes_of_any_kind_are_frames_or_malformed_and_never_more_than_came(pieces):
    there = Wire()
    there.send(3, 1, b"something to acknowledge")
    got = 0
    try:
        for piece in pieces:
            got += sum(wire.HEADER.size + len(payload) for _, _, payload in fed(there, piece))
            assert len(there.room()) >= wire.ROOM_BYTES_MIN
    except Malformed:
        pass
    assert got <= sum(map(len, pieces))
