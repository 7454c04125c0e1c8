"""ray/_launch/token.py: where the token comes from, and which ones are refused."""

from __future__ import annotations

import os
import stat

import pytest

from ray._launch import token


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(token.VARIABLE, raising=False)
    monkeypatch.delenv(token.PATH_VARIABLE, raising=False)
    return tmp_path


def test_the_server_makes_a_file_that_only_its_owner_can_read(home):
    made = token.find_or_make()
    path = home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made) == 32 and token.find() == token.find_or_make() == made
    assert os.listdir(home / ".ray") == ["auth_token"]


def test_two_servers_make_different_tokens(home, tmp_path_factory, monkeypatch):
    first = token.find_or_make()
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("other")))
    assert token.find_or_make() != first


def test_the_environment_comes_first_then_the_path(home, monkeypatch):
    path = home / "t"
    path.write_text("a token in a file of its own\n")
    path.chmod(0o600)
    monkeypatch.setenv(token.PATH_VARIABLE, str(path))
    from_path = token.find()
    monkeypatch.setenv(token.VARIABLE, "a token in the environment")
    assert token.find() != from_path
    monkeypatch.setenv(token.VARIABLE, "a token in a file of its own")
    assert token.find() == from_path


def test_without_any_a_client_is_told_what_to_do(home):
    with pytest.raises(ConnectionError, match=r"auth_token.*RAY_AUTH_TOKEN"):
        token.find()


def test_a_file_that_others_may_read_is_refused(home):
    token.find_or_make()
    (home / ".ray" / "auth_token").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        token.find()


@pytest.mark.parametrize("text", ["", "   ", "short"])
def test_a_token_too_short_to_be_secret_is_refused(monkeypatch, text):
    monkeypatch.setenv(token.VARIABLE, text)
    with pytest.raises(ValueError, match=token.VARIABLE):
        token.find()
