"""Packages: folders and files made into archives that are named by their content, kept in the session's folder.

Runs in the process that submits (`store_folder`, `store_file`): a package is written beside its final name and renamed,
so that whoever sees it sees all of it, and two that write the same one both succeed. The builder process reads them
(`open_archive`). The same content always has the same name, whatever its timestamps say.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from ._ignore import Rules

SCHEME = "gcs://"  # what users of Ray know a package of the cluster's own store by
DEFAULT_EXCLUDES = (".git", ".venv", "venv", "__pycache__")
_CHUNK_BYTES = 1 << 20
_remembered: dict[tuple[Any, ...], tuple[Any, str]] = {}  # what was packed -> (how its files looked, its URI)
_REMEMBERED_MAX = 256


def folder_of(session_dir: str) -> str:
    return session_dir + "/packages"


def store_folder(session_dir: str, folder: str, excludes: list[str], bytes_max: int, top: str = "") -> str:
    """Packs a folder, unless the same content is there. Returns its URI.

    Args: top: name of the folder that stands for it inside the archive; "": its content stands at the top.
    Raises: ValueError: there is more than bytes_max in it, or it can't be read.
    """
    found = list(_files(folder, excludes))
    looks = tuple((name, info.st_mtime_ns, info.st_size, info.st_mode) for name, _, info in found)
    key = (session_dir, folder, tuple(excludes), top)
    if _remembered.get(key, (None, ""))[0] == looks:
        return _remembered[key][1]
    total = sum(info.st_size for _, _, info in found)
    if total > bytes_max:
        largest = sorted(found, key=lambda one: -one[2].st_size)[:3]
        raise ValueError(
            f"runtime_env: the folder {folder!r} has {total / 2**20:.1f} MiB, and a package may have at most "
            f"{bytes_max / 2**20:.1f} MiB (RAY_RUNTIME_ENV_PACKAGE_BYTES_MAX sets the limit). Its largest files are "
            f"{', '.join(f'{name} ({info.st_size / 2**20:.1f} MiB)' for name, _, info in largest)}; leave out what is "
            "not needed with excludes=[...] or a .gitignore"
        )
    uri = _write(session_dir, [(f"{top}/{name}" if top else name, path, info) for name, path, info in found])
    if len(_remembered) >= _REMEMBERED_MAX:
        _remembered.clear()
    _remembered[key] = (looks, uri)
    return uri


def store_file(session_dir: str, path: str, bytes_max: int, name: str = "") -> str:
    """Keeps one file: a module if name is its name inside an archive, else an archive as it is. Returns its URI.

    Raises: ValueError: it is larger than bytes_max, or can't be read.
    """
    try:
        info = os.stat(path)
    except OSError as error:
        raise ValueError(f"runtime_env: {path!r} can't be read: {error.strerror}") from None
    if info.st_size > bytes_max:
        raise ValueError(
            f"runtime_env: {path!r} has {info.st_size / 2**20:.1f} MiB, and a package may have at most "
            f"{bytes_max / 2**20:.1f} MiB (RAY_RUNTIME_ENV_PACKAGE_BYTES_MAX sets the limit)"
        )
    if name:
        return _write(session_dir, [(name, path, info)])
    digest = hashlib.blake2b(digest_size=20)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    # pip reads a wheel's name: it stays, behind the digest
    ending = "--" + os.path.basename(path) if path.endswith(".whl") else ".zip"
    return store_bytes_of(session_dir, f"_ray_pkg_{digest.hexdigest()}{ending}", path)


def store_bytes_of(session_dir: str, name: str, path: str) -> str:
    target = f"{_ensure(session_dir)}/{name}"
    if not os.path.exists(target):
        import shutil

        unfinished = f"{target}.{os.getpid()}"
        shutil.copyfile(path, unfinished)
        os.rename(unfinished, target)
    return SCHEME + name


def store_bytes(session_dir: str, kind: str, data: bytes) -> str:
    """Keeps data, such as a pickled function, by its content. Returns its URI."""
    name = f"_ray_{kind}_{hashlib.blake2b(data, digest_size=20).hexdigest()}"
    target = f"{_ensure(session_dir)}/{name}"
    if not os.path.exists(target):
        unfinished = f"{target}.{os.getpid()}"
        with open(unfinished, "wb") as file:
            file.write(data)
        os.rename(unfinished, target)
    return SCHEME + name


def path_of(session_dir: str, uri: str) -> str:
    """Where the package of a gcs:// URI lies. Raises: ValueError: it names no file of the store."""
    name = uri.removeprefix(SCHEME)
    if "/" in name or name.startswith("."):
        raise ValueError(f"{uri!r} is no package of this session")
    return f"{folder_of(session_dir)}/{name}"


def named_in(text: str) -> list[str]:
    """The URIs of the store in an environment's text."""
    return sorted(set(re.findall(r'"(gcs://[^"]+)"', text)))


def _ensure(session_dir: str) -> str:
    folder = folder_of(session_dir)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder


def _write(session_dir: str, files: list[tuple[str, str, os.stat_result]]) -> str:
    import zipfile

    digest = hashlib.blake2b(digest_size=20)
    unfinished = f"{_ensure(session_dir)}/unfinished.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, path, info in sorted(files, key=lambda one: one[0]):
                mode = 0o755 if info.st_mode & stat.S_IXUSR else 0o644
                entry = zipfile.ZipInfo(name)  # dated 1980: times are no content
                entry.external_attr = (stat.S_IFREG | mode) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                digest.update(f"{len(name.encode())} {name} {mode:o} ".encode())
                with open(path, "rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    size = 0
                    while chunk := source.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        target.write(chunk)
                        size += len(chunk)
                digest.update(f" {size}\n".encode())
        name = f"_ray_pkg_{digest.hexdigest()}.zip"
        os.rename(unfinished, f"{folder_of(session_dir)}/{name}")
    except OSError as error:
        raise ValueError(f"runtime_env: {error.filename or 'a package'} can't be packed: {error.strerror}") from error
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
    return SCHEME + name


def _files(folder: str, excludes: list[str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """(name inside, path, stat) of each file that belongs to the package. Links are followed, but in no circle."""
    if not os.path.isdir(folder):
        raise ValueError(f"runtime_env: {folder!r} is no folder that exists")
    ours = [Rules(DEFAULT_EXCLUDES), Rules(excludes)]
    heed_git = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"

    def visit(inside: str, git: list[tuple[str, Rules]], above: tuple[tuple[int, int], ...]) -> Iterator[Any]:
        here = f"{folder}/{inside}" if inside else folder
        own = f"{here}/.gitignore"
        if heed_git and os.path.isfile(own):
            with open(own, encoding="utf-8", errors="replace") as file:
                git = [*git, (f"{inside}/" if inside else "", Rules(file))]
        try:
            names = sorted(os.listdir(here))
        except OSError as error:
            raise ValueError(f"runtime_env: {here!r} can't be read: {error.strerror}") from None
        for name in names:
            path, inner = f"{here}/{name}", f"{inside}/{name}" if inside else name
            try:
                info = os.stat(path)
            except OSError:
                continue  # a link to nowhere
            is_folder = stat.S_ISDIR(info.st_mode)
            if any(rules.says(inner, is_folder) for rules in ours):
                continue
            verdicts = [rules.says(inner[len(base) :], is_folder) for base, rules in git]
            if next((verdict for verdict in reversed(verdicts) if verdict is not None), False):
                continue
            if is_folder:
                if (info.st_dev, info.st_ino) not in above:
                    yield from visit(inner, git, (*above, (info.st_dev, info.st_ino)))
            elif stat.S_ISREG(info.st_mode):
                yield inner, path, info

    yield from visit("", [], ())
