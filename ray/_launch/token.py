"""Where the token comes from that nodes of a cluster, and both ends of a ray:// connection, prove to know. No state.

In this order: the environment's RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, `~/.ray/auth_token`. The
first head (or client server) of a user makes the last one, mode 0600; another machine is given a copy.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile

VARIABLE = "RAY_AUTH_TOKEN"
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
TEXT_BYTES_MIN = 16


def default_path() -> str:
    return os.path.join(os.path.expanduser("~"), ".ray", "auth_token")


def find() -> bytes:
    """The token, as 32 bytes.

    Raises: PermissionError: others may read its file.  ValueError: it is too short to be secret.
        ConnectionError: there is none.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        return _digest(text, f"the environment variable {VARIABLE}")
    path = os.environ.get(PATH_VARIABLE) or default_path()
    try:
        return _read(path)
    except FileNotFoundError:
        raise ConnectionError(
            f"no token to prove: {path} doesn't exist. Copy ~/.ray/auth_token of the cluster's head there (mode 0600), "
            f"or set {VARIABLE} or {PATH_VARIABLE}"
        ) from None


def find_or_make() -> bytes:
    """As `find`, on the cluster's side: makes the file if there is none."""
    if VARIABLE not in os.environ:
        path = os.environ.get(PATH_VARIABLE) or default_path()
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        # Linked into place when it is whole: another server that starts at this moment must not read half a token.
        with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path) or ".", prefix=".auth_token-") as file:  # 0600
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            try:
                os.link(file.name, path)
            except FileExistsError:
                return _read(path)
    return find()


def _read(path: str) -> bytes:
    with open(path) as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise PermissionError(f"{path} may be read by others than its owner: chmod 600 {path}")
        return _digest(file.read(), path)


def _digest(text: str, where: str) -> bytes:
    text = text.strip()
    if len(text) < TEXT_BYTES_MIN:
        raise ValueError(f"the token in {where} has {len(text)} characters: at least {TEXT_BYTES_MIN} are needed")
    return hashlib.sha256(text.encode()).digest()
