"""working_dir and py_modules: packages fetched and unpacked. In the builder process."""

from __future__ import annotations

import os
import shutil
import stat
import urllib.error
import urllib.parse
import urllib.request
import zipfile

from . import _fields, _packages, _parts
from ._tools import BuildError, Site


def working_dir(site: Site) -> None:
    uri = site.env["working_dir"]

    def make(folder: str) -> None:
        _unpack(site, uri, folder)
        if not uri.startswith(_packages.SCHEME):
            _lift(folder)

    folder = site.part(_parts.working_dir(site.env), make)
    site.context["cwd"] = folder
    site.context["sys_path"].append(folder)


def py_modules(site: Site) -> None:
    for uri in site.env["py_modules"]:

        def make(folder: str, uri: str = uri) -> None:
            if uri.endswith(".whl"):
                wheel = _fetched(site, uri, folder + ".fetched")
                try:
                    named = f"{folder}.fetched.d/{os.path.basename(uri).rpartition('--')[2]}"
                    os.makedirs(os.path.dirname(named), exist_ok=True)
                    os.replace(wheel, named)
                    pip = ["-m", "pip", "install", "--no-deps", "--no-input", "--disable-pip-version-check"]
                    site.run([*site.context["python"], *pip, "--target", folder, named])
                finally:
                    shutil.rmtree(f"{folder}.fetched.d", ignore_errors=True)
            else:
                _unpack(site, uri, folder)

        site.context["sys_path"].append(site.part(_parts.part("py_modules", uri), make))


def _unpack(site: Site, uri: str, folder: str) -> None:
    fetched = _fetched(site, uri, folder + ".fetched")
    try:
        with zipfile.ZipFile(fetched) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > site.bytes_max:
                raise BuildError(
                    f"{uri} has {total / 2**20:.1f} MiB unpacked, and a package may have at most "
                    f"{site.bytes_max / 2**20:.1f} MiB (RAY_RUNTIME_ENV_PACKAGE_BYTES_MAX sets the limit)"
                )
            for entry in archive.infolist():
                path = archive.extract(entry, folder)  # never outside folder: extract() drops .. and roots
                if not entry.is_dir() and (entry.external_attr >> 16) & stat.S_IXUSR:
                    os.chmod(path, 0o755)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BuildError(f"{uri} is no zip file that can be unpacked: {error}") from None
    finally:
        os.unlink(fetched)


def _lift(folder: str) -> None:
    """An archive made elsewhere often holds one folder with everything in it: its content is what is meant."""
    names = os.listdir(folder)
    if len(names) != 1 or not os.path.isdir(f"{folder}/{names[0]}"):
        return
    inner = f"{folder}/.lifted"
    os.rename(f"{folder}/{names[0]}", inner)
    for name in os.listdir(inner):
        os.rename(f"{inner}/{name}", f"{folder}/{name}")
    os.rmdir(inner)


def _fetched(site: Site, uri: str, target: str) -> str:
    """A copy of the package of uri at target, the caller's to remove."""
    scheme = _fields.scheme_of(uri)
    try:
        if scheme == "gcs":
            shutil.copyfile(_packages.path_of(site.session_dir, uri), target)
        elif scheme == "file":
            shutil.copyfile(urllib.parse.unquote(urllib.parse.urlsplit(uri).path), target)
        else:
            _download(site, uri, target)
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise BuildError(f"{uri} can't be fetched: {error}") from None
    return target


def _download(site: Site, uri: str, target: str) -> None:
    print(f"fetching {uri}", flush=True)
    with urllib.request.urlopen(uri, timeout=60) as source, open(target, "wb") as file:
        size = 0
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > site.bytes_max:
                raise BuildError(
                    f"{uri} is larger than {site.bytes_max / 2**20:.1f} MiB "
                    "(RAY_RUNTIME_ENV_PACKAGE_BYTES_MAX sets the limit)"
                )
            file.write(chunk)
