"""How the two ends of a TCP connection prove to each other that they know the cluster's token, before a byte of it is
interpreted. Pure: builds and judges the three messages of fixed size; the token itself never travels.

    server -> client   CHALLENGE   magic 8, u16 version, u8 tls, 5 zero, nonce 32
    client -> server   REQUEST     magic 8, u16 version, u8 kind, 5 zero, nonce 32, session 16, u64 received, proof 32
    server -> client   ANSWER      magic 8, u16 version, u8 verdict, 5 zero, session 16, u64 received, proof 32

A proof is HMAC-SHA256 under the token of a label that differs for the two directions, both nonces, and everything that
stands before it in its message. So neither can be replayed into another connection, reflected, or changed on its way.
`session` and `received` say which Wire goes on (wire.py); kind NEW begins one.

With `tls` all that follows the CHALLENGE goes through TLS (link.py). Nobody vouches for that byte, and nobody need: a
server that has TLS takes and gives no proof without it, so whoever clears the byte gains a client that nobody answers.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

MAGIC = b"\x8fray\r\n\x1ac"
VERSION = 2
NONCE_BYTES = 32
SESSION_BYTES = 16
PROOF_BYTES = 32
NEW, RESUME = 0, 1
WELCOME, UNKNOWN_SESSION = 0, 1

_CHALLENGE = struct.Struct("<8sHB5x32s")
_REQUEST = struct.Struct("<8sHB5x32s16sQ")
_ANSWER = struct.Struct("<8sHB5x16sQ")
CHALLENGE_BYTES = _CHALLENGE.size
REQUEST_BYTES = _REQUEST.size + PROOF_BYTES
ANSWER_BYTES = _ANSWER.size + PROOF_BYTES


class Refused(ConnectionError):
    """The other end did not prove itself, or is no end of a ray:// connection at all."""


def challenge(nonce: bytes, tls: bool = False) -> bytes:
    return _CHALLENGE.pack(MAGIC, VERSION, tls, nonce)


def read_challenge(message: bytes) -> tuple[bytes, bool]:
    """(the server's nonce, whether it goes on with TLS). Raises: Refused."""
    magic, version, tls, nonce = _CHALLENGE.unpack(message)
    _check(magic, version)
    if tls not in (0, 1):
        raise Refused(f"the server's first message has {tls} where 0 or 1 is expected")
    return bytes(nonce), bool(tls)


def request(token: bytes, server_nonce: bytes, nonce: bytes, kind: int, session: bytes, received: int) -> bytes:
    body = _REQUEST.pack(MAGIC, VERSION, kind, nonce, session, received)
    return body + _proof(token, b"client", server_nonce, nonce, body)


def read_request(message: bytes, token: bytes, server_nonce: bytes) -> tuple[int, bytes, int, bytes]:
    """(kind, session, received, the client's nonce). Raises: Refused."""
    body, proof = message[: _REQUEST.size], message[_REQUEST.size :]
    magic, version, kind, nonce, session, received = _REQUEST.unpack(body)
    _check(magic, version)
    if not hmac.compare_digest(proof, _proof(token, b"client", server_nonce, nonce, body)):
        raise Refused("the client doesn't know this cluster's token")
    if kind not in (NEW, RESUME):
        raise Refused(f"the client asks for {kind}, which this version doesn't know")
    return kind, session, received, nonce


def answer(token: bytes, server_nonce: bytes, nonce: bytes, verdict: int, session: bytes, received: int) -> bytes:
    body = _ANSWER.pack(MAGIC, VERSION, verdict, session, received)
    return body + _proof(token, b"server", server_nonce, nonce, body)


def read_answer(message: bytes, token: bytes, server_nonce: bytes, nonce: bytes) -> tuple[int, bytes, int]:
    """(verdict, session, received). Raises: Refused."""
    body, proof = message[: _ANSWER.size], message[_ANSWER.size :]
    magic, version, verdict, session, received = _ANSWER.unpack(body)
    _check(magic, version)
    if not hmac.compare_digest(proof, _proof(token, b"server", server_nonce, nonce, body)):
        raise Refused("the server doesn't know the token that this client uses")
    return verdict, session, received


def _proof(token: bytes, label: bytes, server_nonce: bytes, nonce: bytes, body: bytes) -> bytes:
    return hmac.new(token, label + server_nonce + nonce + body, hashlib.sha256).digest()


def _check(magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise Refused("what answers there is not a ray client server (or what connects is not a ray client)")
    if version != VERSION:
        raise Refused(f"the other end speaks version {version} of the ray:// protocol, this one {VERSION}")
