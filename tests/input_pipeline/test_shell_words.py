"""A printed command names the very file, whatever its name is made of, and is harmless to a terminal."""

import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.shell_words import shell_word, shell_words

NAMES = [
    "plain",
    "two words",
    "it's",
    "a\nb",
    "\x1b[31mred",
    "tab\tand 'quote\\",
    "\udcff7",
    "\u202egpj.exe",
    "",
    "$(id)\n`id`",
]


def test_plain_names_stay_as_they_are():
    assert shell_words(["runs/demo", "two words"]) == "runs/demo 'two words'"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_a_shell_makes_the_same_names_of_them():
    line = shell_words(NAMES)
    assert line.isprintable()
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert shown.stdout == b"".join(os.fsencode(name) + b"\0" for name in NAMES)


@given(st.text())
def test_every_word_is_safe_in_a_line(name):
    assert shell_word(name).isprintable()
