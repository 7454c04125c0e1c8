"""RuntimeEnv as a value: fields checked, the merge of a child's over a parent's, packages by content. No process."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tests
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig, _packages, _parts, _prepare
from ray.runtime_env._ignore import Rules

MIB = 2**20


# -- the class ---------------------------------------------------------------------------------------------------


def test_it_is_a_dict_of_the_fields_given() -> None:
    env = RuntimeEnv(env_vars={"A": "1"}, working_dir="/x")
    assert env == {"env_vars": {"A": "1"}, "working_dir": "/x"} and isinstance(env, dict)
    assert env.env_vars() == {"A": "1"} and env.working_dir() == "/x" and env.has_working_dir()
    assert RuntimeEnv() == {} and RuntimeEnv(pip=None) == {}


def test_the_examples_of_the_documentation() -> None:
    RuntimeEnv(conda={"channels": ["defaults"], "dependencies": ["codecov"]})
    assert RuntimeEnv(conda="pytorch_p36").conda_env_name() == "pytorch_p36"
    env = RuntimeEnv(
        container={
            "image": "anyscale/ray-ml:nightly-py38-cpu",
            "run_options": ["--cap-drop SYS_ADMIN", "--log-level=debug"],
        }
    )
    assert env.py_container_image() == "anyscale/ray-ml:nightly-py38-cpu"
    assert env.py_container_run_options() == ["--cap-drop SYS_ADMIN", "--log-level=debug"]
    assert RuntimeEnv(env_vars={"OMP_NUM_THREADS": "32", "TF_WARNINGS": "none"}).env_vars()["TF_WARNINGS"] == "none"
    env = RuntimeEnv(
        pip={
            "packages": ["tensorflow", "requests"],
            "pip_check": False,
            "pip_version": "==22.0.2;python_version=='3.8.11'",
        }
    )
    assert env.pip_config() == {
        "packages": ["tensorflow", "requests"],
        "pip_check": False,
        "pip_version": "==22.0.2;python_version=='3.8.11'",
    }


def test_the_methods_of_a_dict_check_what_comes_in() -> None:
    env = RuntimeEnv(env_vars={"A": "1"})
    env["pip"] = ["x"]
    assert env["pip"] == {"packages": ["x"], "pip_check": False}
    env.update({"working_dir": "/x"}, nsight="default")
    assert env.setdefault("working_dir", "/y") == "/x" and env.get("nsight") == "default" and env.get("uv", 3) == 3
    assert env.pop("pip") and "pip" not in env and env.pop("pip", None) is None
    env.set("image_uri", "i")
    for wrong in ({"env_vars": {"A": 1}}, {"nonsense": 1}):
        for change in (env.update, lambda w: env.setdefault(*next(iter({**w}.items())))):
            if "env_vars" in wrong and change is not env.update:
                continue  # it is there: setdefault changes nothing
            with pytest.raises((TypeError, ValueError)):
                change(wrong)
    assert RuntimeEnv.fromkeys(["working_dir"], "/z") == {"working_dir": "/z"}
    with pytest.raises(KeyError):
        env.pop("pip")
    assert env.plugin_uris() == []


def test_it_travels_as_text_and_as_a_pickle() -> None:
    env = RuntimeEnv(env_vars={"A": "1"}, pip=["x"], config={"setup_timeout_seconds": 5})
    assert RuntimeEnv.deserialize(env.serialize()) == env and json.loads(env.serialize()) == env.to_dict()
    again = pickle.loads(pickle.dumps(env))
    assert again == env and type(again) is RuntimeEnv and type(env.copy()) is RuntimeEnv
    with pytest.raises(TypeError, match="worker_process_setup_hook is a function"):
        RuntimeEnv(worker_process_setup_hook=print).serialize()


def test_validation_can_be_left_out() -> None:
    assert RuntimeEnv(_validate=False, env_vars={"A": 1}) == {"env_vars": {"A": 1}}


def test_config() -> None:
    assert RuntimeEnvConfig() == {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}
    assert RuntimeEnvConfig.default_config() == RuntimeEnvConfig()
    env = RuntimeEnv(config=RuntimeEnvConfig(setup_timeout_seconds=-1, eager_install=False))
    assert env["config"].to_dict() == {"setup_timeout_seconds": -1, "eager_install": False, "log_files": []}
    assert type(RuntimeEnv(config={"setup_timeout_seconds": 3})["config"]) is RuntimeEnvConfig


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"env_var": {}}, ValueError, "unknown field 'env_var'; did you mean 'env_vars'"),
        ({"env_vars": ["A"]}, TypeError, "a dict of strings"),
        ({"env_vars": {"A": 1}}, TypeError, r"env_vars\['A'\]=1"),
        ({"env_vars": {1: "A"}}, TypeError, r"env_vars\[1\]"),
        ({"env_vars": {"A=B": "1"}}, ValueError, "without '='"),
        ({"env_vars": {"A": "\0"}}, ValueError, "NUL"),
        ({"working_dir": 1}, TypeError, "working_dir=1"),
        ({"working_dir": ""}, ValueError, "working_dir"),
        ({"working_dir": "ftp://x/a.zip"}, ValueError, "gcs, file, http, https"),
        ({"working_dir": "https://x/a.tar"}, ValueError, "ends in .zip"),
        ({"working_dir": "s3://x/a.zip"}, NotImplementedError, "s3://"),
        ({"py_modules": "x"}, TypeError, "a list of modules"),
        ({"py_modules": [1]}, TypeError, r"py_modules\[0\]"),
        ({"py_modules": [os, pickle, __import__("sys")]}, ValueError, "sys has no Python source"),
        ({"excludes": "*.pyc"}, TypeError, "excludes"),
        ({"excludes": [1]}, TypeError, r"excludes\[0\]"),
        ({"pip": 1}, TypeError, "pip=1"),
        ({"pip": "/no/such/requirements.txt"}, ValueError, "can't be read"),
        ({"pip": {}}, ValueError, "has 'packages'"),
        ({"pip": {"packages": "/no/such"}}, ValueError, "can't be read"),
        ({"pip": {"packages": [1]}}, TypeError, r"packages'\]\[0\]"),
        ({"pip": {"packages": [], "pip_chek": True}}, ValueError, "did you mean 'pip_check'"),
        ({"pip": {"packages": [], "pip_check": "yes"}}, TypeError, "True or False"),
        ({"pip": {"packages": [], "pip_version": 22}}, TypeError, "version specifier"),
        ({"uv": {"packages": [], "uv_version": 22}}, TypeError, "version specifier"),
        ({"uv": {"packages": [], "pip_check": True}}, ValueError, "unknown entry"),
        ({"conda": 1}, TypeError, "conda=1"),
        ({"conda": {}}, ValueError, "conda={}"),
        ({"conda": "/no/such/environment.yaml"}, ValueError, "no such file"),
        ({"container": "image"}, TypeError, "'image'"),
        ({"container": {"run_options": []}}, ValueError, "has 'image'"),
        ({"container": {"image": "x", "run_options": "--rm"}}, TypeError, "run_options"),
        ({"container": {"image": "x", "command": "y"}}, ValueError, "unknown entry 'command'"),
        ({"image_uri": 1}, TypeError, "image_uri=1"),
        ({"worker_process_setup_hook": 1}, TypeError, "a function"),
        ({"worker_process_setup_hook": "function"}, ValueError, "module.function"),
        ({"nsight": "all"}, ValueError, "'default'"),
        ({"nsight": {"t": 1}}, TypeError, r"nsight\['t'\]"),
        ({"mpi": {"args": []}}, ValueError, "worker_entry"),
        ({"mpi": {"worker_entry": "m.f", "args": "-n 4"}}, TypeError, "args"),
        ({"mpi": {"worker_entry": "f"}}, ValueError, "module.function"),
        ({"py_executable": 1}, TypeError, "py_executable=1"),
        ({"config": 1}, TypeError, "RuntimeEnvConfig"),
        ({"config": {"timeout": 1}}, ValueError, "unknown entry 'timeout'"),
        ({"config": {"setup_timeout_seconds": 0}}, ValueError, "> 0, or -1"),
        ({"config": {"setup_timeout_seconds": "5"}}, TypeError, "setup_timeout_seconds"),
        ({"config": {"eager_install": 1}}, TypeError, "eager_install"),
        ({"config": {"log_files": "x"}}, TypeError, "log_files"),
        ({"java_jars": ["x.jar"]}, NotImplementedError, "Java"),
        ({"rocprof_sys": "default"}, NotImplementedError, "rocprof"),
        ({"pip": ["a"], "conda": "b"}, ValueError, "pip and conda can't be given together"),
        ({"pip": ["a"], "uv": ["b"]}, ValueError, "pip and uv can't be given together"),
        ({"container": {"image": "x"}, "pip": ["a"]}, ValueError, "container can't be used together with pip"),
        ({"image_uri": "x", "working_dir": "/a"}, ValueError, "image_uri can't be used together with working_dir"),
        ({"py_executable": "python3", "conda": "b"}, ValueError, "py_executable and conda"),
    ],
)
def test_a_wrong_field_is_refused_with_its_name_and_what_would_do(
    fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RuntimeEnv(**fields)
    with pytest.raises(error, match=words.replace("runtime_env", "option")):
        _prepare.check("option", fields)


def test_requirements_are_read_from_their_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("# ours\nrequests==2.0\n\n--no-index\n")
    expected = {"packages": ["requests==2.0", "--no-index"], "pip_check": False}
    assert RuntimeEnv(pip=str(tmp_path / "requirements.txt"))["pip"] == expected
    assert RuntimeEnv(pip={"packages": str(tmp_path / "requirements.txt")})["pip"] == expected


def test_what_is_no_dict_is_no_environment() -> None:
    with pytest.raises(TypeError, match=r"expected a dict or a ray\.runtime_env\.RuntimeEnv"):
        _prepare.check("runtime_env", "pip")
    env = RuntimeEnv(pip=["a"])
    env["conda"] = "b"  # each is right by itself
    with pytest.raises(ValueError, match="together"):
        _prepare.check("runtime_env", env)


# -- merging -----------------------------------------------------------------------------------------------------


def test_a_childs_fields_replace_the_parents_and_env_vars_are_merged() -> None:
    parent = {"pip": {"packages": ["requests", "chess"]}, "env_vars": {"A": "a", "B": "b"}, "working_dir": "w"}
    child = {"pip": {"packages": ["torch"]}, "env_vars": {"B": "new", "C": "c"}}
    assert _prepare.merge(parent, child) == {
        "pip": {"packages": ["torch"]},
        "env_vars": {"A": "a", "B": "new", "C": "c"},
        "working_dir": "w",
    }


def test_what_cant_stand_beside_a_childs_field_gives_way() -> None:
    assert _prepare.merge({"pip": {}, "py_executable": "p"}, {"conda": "c"}) == {"conda": "c"}
    assert _prepare.merge({"working_dir": "w", "env_vars": {"A": "1"}}, {"image_uri": "i"}) == {
        "image_uri": "i",
        "env_vars": {"A": "1"},
    }
    assert _prepare.merge({"image_uri": "i"}, {"env_vars": {"A": "1"}}) == {"image_uri": "i", "env_vars": {"A": "1"}}
    assert _prepare.merge({"image_uri": "i"}, {"pip": {}}) == {"pip": {}}


def test_equal_environments_have_one_key_and_config_is_no_part_of_it(tmp_path: Path) -> None:
    def text(**fields: Any) -> str:
        return _prepare.effective(RuntimeEnv(**fields), "", str(tmp_path), MIB)

    one = text(env_vars={"A": "1", "B": "2"}, config={"setup_timeout_seconds": 5})
    assert _parts.key_of(one) == _parts.key_of(text(env_vars={"B": "2", "A": "1"})) != _parts.key_of(text(env_vars={}))
    assert _parts.key_of("") == "" == _parts.key_of(text(config={}))
    assert _prepare.effective(None, one, str(tmp_path), MIB) == one


# -- patterns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "left_out"),
    [
        ("*.pyc", "a/b.pyc", True),
        ("*.pyc", "a/b.py", None),
        ("/*.pyc", "a/b.pyc", None),
        ("/*.pyc", "b.pyc", True),
        ("build", "x/build", True),
        ("build/", "build", None),  # a file of that name
        ("a/b", "a/b", True),
        ("a/b", "x/a/b", None),
        ("**/b", "x/y/b", True),
        ("a/**", "a/x/y", True),
        ("a/**", "a", None),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", None),
        ("[ab].txt", "a.txt", True),
        ("[!ab].txt", "a.txt", None),
        ("# a", "# a", None),
        ("\\#a", "#a", True),
        ("  ", " ", None),
        ("a.b", "axb", None),
    ],
)
def test_a_pattern_means_what_it_means_to_git(pattern: str, path: str, left_out: bool | None) -> None:
    assert Rules([pattern]).says(path, False) is left_out


def test_the_last_pattern_that_matches_decides() -> None:
    rules = Rules(["*.log", "!keep.log", "logs/"])
    assert rules.says("a.log", False) is True and rules.says("keep.log", False) is False
    assert rules.says("logs", True) is True and rules.says("logs", False) is None


# -- packages ------------------------------------------------------------------------------------------------------


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


def names_in(session: Path, uri: str) -> set[str]:
    with zipfile.ZipFile(_packages.path_of(str(session), uri)) as archive:
        return set(archive.namelist())


def test_the_same_content_has_the_same_name_whatever_its_times(tmp_path: Path) -> None:
    session = tmp_path / "s"
    one = tree(tmp_path / "one", {"a.py": "1", "b/c.py": "2"})
    two = tree(tmp_path / "two", {"b/c.py": "2", "a.py": "1"})
    os.utime(tmp_path / "two" / "a.py", (1, 1))
    uri = _packages.store_folder(str(session), one, [], MIB)
    assert uri.startswith("gcs://_ray_pkg_") and uri == _packages.store_folder(str(session), two, [], MIB)
    tree(tmp_path / "two", {"a.py": "changed"})
    assert _packages.store_folder(str(session), two, [], MIB) != uri
    os.chmod(tmp_path / "one" / "a.py", 0o755)
    assert _packages.store_folder(str(session), one, [], MIB) != uri
    assert not [name for name in os.listdir(session / "packages") if name.startswith("unfinished")]


def test_excludes_and_gitignore_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        ".gitignore": "*.log\n/only_top\n",
        "a.py": "", "a.log": "", "only_top": "", "sub/only_top": "", "sub/.gitignore": "!b.log\nc\n",
        "sub/b.log": "", "sub/c": "", "data/big.bin": "", "__pycache__/a.pyc": "", ".git/config": "",
    }  # fmt: skip
    folder, session = tree(tmp_path / "w", files), tmp_path / "s"
    uri = _packages.store_folder(str(session), folder, ["data/"], MIB)
    assert names_in(session, uri) == {".gitignore", "a.py", "sub/only_top", "sub/.gitignore", "sub/b.log"}
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert {"a.log", "sub/c"} <= names_in(session, _packages.store_folder(str(session), folder, [], MIB))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder, session = tree(tmp_path / "w", {"a/b.py": ""}), tmp_path / "s"
    os.symlink("..", tmp_path / "w" / "a" / "up")
    os.symlink("a", tmp_path / "w" / "again")
    os.symlink("nowhere", tmp_path / "w" / "broken")
    names = names_in(session, _packages.store_folder(str(session), folder, [], MIB))
    assert {"a/b.py", "again/b.py"} <= names and "broken" not in names and len(names) < 20


def test_a_folder_that_is_too_large_names_its_largest_files(tmp_path: Path) -> None:
    folder = tree(tmp_path / "w", {"small": "x", "huge.bin": "x" * 2 * MIB})
    with pytest.raises(ValueError, match=r"2\.0 MiB.*1\.0 MiB.*huge\.bin \(2\.0 MiB\).*excludes"):
        _packages.store_folder(str(tmp_path / "s"), folder, [], MIB)
    assert _packages.store_folder(str(tmp_path / "s"), folder, ["*.bin"], MIB)


def test_what_only_this_process_sees_becomes_a_package(tmp_path: Path) -> None:
    session = tmp_path / "s"
    tree(tmp_path / "pkg", {"__init__.py": "x = 1"})
    tree(tmp_path, {"mod.py": "y = 2", "env.yaml": "name: e\n"})
    env = RuntimeEnv(
        working_dir=str(tmp_path / "pkg"),
        py_modules=[str(tmp_path / "pkg"), str(tmp_path / "mod.py"), tests],
        excludes=["*.md"],
    )
    ready = _prepare.prepare(env, str(session), 64 * MIB)
    assert "excludes" not in ready
    assert names_in(session, ready["working_dir"]) == {"__init__.py"}
    assert names_in(session, ready["py_modules"][0]) == {"pkg/__init__.py"}
    assert names_in(session, ready["py_modules"][1]) == {"mod.py"}
    assert "tests/leaks.py" in names_in(session, ready["py_modules"][2])
    ready = _prepare.prepare(RuntimeEnv(conda=str(tmp_path / "env.yaml")), str(session), MIB)
    assert ready["conda"] == {"environment_yaml": "name: e\n"}
    ready = _prepare.prepare(RuntimeEnv(worker_process_setup_hook=lambda: None), str(session), MIB)
    assert os.path.exists(_packages.path_of(str(session), ready["worker_process_setup_hook"]))
    json.dumps(ready)


@pytest.mark.parametrize(
    "fields", [{"working_dir": "/no/such"}, {"py_modules": ["/no/such"]}, {"working_dir": __file__}]
)
def test_what_is_not_there_is_an_error_where_it_is_packed(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="that exists"):
        _prepare.prepare(RuntimeEnv(**fields), str(tmp_path), MIB)


def test_a_uri_of_the_store_cant_lead_out_of_it(tmp_path: Path) -> None:
    for uri in ("gcs://../token", "gcs://a/b"):
        with pytest.raises(ValueError, match="no package"):
            _packages.path_of(str(tmp_path), uri)


# -- parts ---------------------------------------------------------------------------------------------------------


def test_environments_share_the_parts_they_have_in_common() -> None:
    one = {"pip": {"packages": ["a"]}, "working_dir": "gcs://w.zip", "env_vars": {"A": "1"}}
    two = {"pip": {"packages": ["a"]}, "env_vars": {"A": "2"}}
    assert set(_parts.parts_of(two)) < set(_parts.parts_of(one)) and len(_parts.parts_of(one)) == 2
    assert not _parts.needs_build({"env_vars": {"A": "1"}, "worker_process_setup_hook": "m.f"})
    assert _parts.needs_build({"image_uri": "i"}) and _parts.needs_build({"py_executable": "p"})


def test_requirements_in_the_working_dir_make_the_environment_depend_on_it() -> None:
    pip = {"packages": ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/requirements.txt"]}
    parts = {_parts.packages("pip", {"pip": pip, "working_dir": uri}) for uri in ("gcs://a.zip", "gcs://b.zip")}
    assert len(parts) == 2
