"""Which files of a folder are left out of a package: patterns as git reads them (gitignore(5)). Pure.

Rules are asked in order and the last that matches decides. A folder that is left out is not entered, so nothing below
it can be taken back, as in git.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


class Rules:
    """The patterns of one .gitignore, or of one `excludes`. Paths are relative to where it stands, with slashes."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules = [rule for rule in map(_rule, lines) if rule is not None]

    def says(self, path: str, is_folder: bool) -> bool | None:
        """True: leave it out; False: a "!" rule takes it back; None: no rule is about it."""
        for pattern, folders_only, verdict in reversed(self._rules):
            if (is_folder or not folders_only) and pattern.fullmatch(path):
                return verdict
        return None


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    text = line.rstrip("\r\n")
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    verdict = not text.startswith("!")
    text = text if verdict else text[1:]
    folders_only = text.endswith("/")
    text = text.removesuffix("/") if folders_only else text
    anchored = "/" in text
    text = text.removeprefix("/")
    if not text:
        return None
    return re.compile(("" if anchored else "(?:.*/)?") + _glob(text), re.DOTALL), folders_only, verdict


def _glob(text: str) -> str:
    out, i = [], 0
    while i < len(text):
        if text.startswith("**/", i) and (i == 0 or text[i - 1] == "/"):
            out.append("(?:.*/)?")
            i += 3
        elif text[i:] == "**" and i and text[i - 1] == "/":
            out.append(".+")
            i += 2
        elif text[i] == "*":
            out.append("[^/]*")
            i += 1
        elif text[i] == "?":
            out.append("[^/]")
            i += 1
        elif text[i] == "[" and "]" in text[i + 2 :]:
            end = text.index("]", i + 2)
            inner = text[i + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out.append("[" + ("^" + inner[1:] if inner[0] in "!^" else inner) + "]")
            i = end + 1
        elif text[i] == "\\" and i + 1 < len(text):
            out.append(re.escape(text[i + 1]))
            i += 2
        else:
            out.append(re.escape(text[i]))
            i += 1
    return "".join(out)
