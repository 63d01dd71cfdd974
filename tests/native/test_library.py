"""What is made of C sources, and what is said where it cannot be."""

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from native.library import compiled, reason
from native.own_folders import cache_folder

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler on this machine"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "resnet-jax" / "sum"


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "sum.h").write_text("enum { MORE = 1 };\n")
    (tmp_path / "sum.c").write_text('#include "sum.h"\nint sum(int a, int b) { return a + b + MORE; }\n')
    return [tmp_path / "sum.c", tmp_path / "sum.h"]


@pytest.mark.parametrize(
    ("given", "base"), [("~/c", "HOME/c"), ("~no-such-user/c", "~no-such-user/c"), ("", "HOME/.cache")]
)
def test_where_the_cache_lies(monkeypatch, tmp_path, given, base):
    """A ~NAME without a home is a folder of that name: pathlib would raise RuntimeError."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert cache_folder("a") == Path(base.replace("HOME", str(tmp_path)), "resnet-jax", "a")


@needs_compiler
def test_it_is_made_once_for_each_content_and_option(sources, cache, tmp_path):
    made = compiled("sum", sources)
    assert ctypes.CDLL(str(made)).sum(2, 3) == 6
    stamp = made.stat().st_mtime_ns
    assert compiled("sum", sources) == made
    assert made.stat().st_mtime_ns == stamp
    sources[1].write_text("enum { MORE = 2 };\n")
    changed = compiled("sum", sources)
    assert ctypes.CDLL(str(changed)).sum(2, 3) == 7
    header = tmp_path / "version.h"
    header.write_text("")
    others = {compiled("sum", sources, headers=[header]), compiled("sum", sources, options=["-lm"])}
    assert len(others | {made, changed}) == 4
    assert sorted(cache.iterdir()) == sorted(others | {made, changed})


@needs_compiler
def test_what_fails_is_told_in_one_line_and_leaves_nothing(sources, cache):
    sources[0].write_text("int sum(int a, int b) { return c; }\n")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        compiled("sum", sources)
    said = reason(failure.value)
    assert "could not compile sum.c (exit code 1)" in said
    assert "error: " in said
    assert "\n" not in said
    assert not list(cache.iterdir())


@needs_compiler
def test_what_another_user_may_have_put_there_is_not_loaded(sources, cache, monkeypatch):
    made = compiled("sum", sources)
    made.write_text("planted")
    made.chmod(0o666)
    cache.chmod(0o777)
    assert ctypes.CDLL(str(compiled("sum", sources))).sum(2, 3) == 6
    assert not cache.stat().st_mode & 0o002
    if os.getuid():
        monkeypatch.setattr(os, "getuid", lambda: made.stat().st_uid + 1)
    else:  # root, whose files anybody may trust
        os.chown(cache.parent, 12345, -1)
    with pytest.raises(PermissionError) as refused:
        compiled("sum", sources)
    assert "belongs to another user" in reason(refused.value)
    assert "set XDG_CACHE_HOME" in reason(refused.value)


def test_a_missing_compiler_and_a_cache_that_cannot_be_written_are_named(sources, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as inside:
        inside.setenv("PATH", "/nowhere")
        with pytest.raises(FileNotFoundError) as failure:
            compiled("sum", sources)
    assert reason(failure.value) == "there is no C compiler (Debian: apt install gcc libc6-dev)"
    monkeypatch.setenv("CC", shutil.which("true") or "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Not a directory") as refused:
        compiled("sum", sources)
    assert str(tmp_path / "file") in reason(refused.value)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(importlib.metadata.PackageNotFoundError) as failure:
        importlib.metadata.version("not-there")
    assert reason(failure.value) == "the package not-there is not installed"
