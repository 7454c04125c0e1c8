"""What the state API raises."""

from __future__ import annotations


class RayStateApiException(Exception):
    """The question could not be answered, or not in full."""


class ServerUnavailable(RayStateApiException):
    """There is no session to ask."""


__all__ = ["RayStateApiException", "ServerUnavailable"]
