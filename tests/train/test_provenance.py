"""provenance.json's command can be given again."""

import importlib.machinery
import sys
import types

import pytest

from resnet.train.provenance import arguments


@pytest.mark.parametrize(("name", "given"), [("pkg.tool", "pkg.tool"), ("pkg.__main__", "pkg")])
def test_a_modules_name_is_kept_where_python_gives_its_file(monkeypatch, name, given):
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="/somewhere/pkg/tool.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/somewhere/pkg/tool.py", "--a=1", "b"])
    assert arguments() == ["-m", given, "--a=1", "b"]
    # A program in a process of another one.
    monkeypatch.setattr(sys, "argv", ["train_main.py", "--a=1"])
    assert arguments() == ["train_main.py", "--a=1"]


def test_a_script_is_its_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(sys, "argv", ["train_main.py", "--a=1"])
    assert arguments() == ["train_main.py", "--a=1"]
