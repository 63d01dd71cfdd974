"""The demo in a real browser: a picture is explained, a bad file gets a sentence, and nobody else is asked anything."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from input_pipeline.errors import InputError
from resnet.study import demo
from tests import bombs
from tests.browser import CHROMIUM, PATIENCE, Browser
from tests.commands import ROOT
from tests.tiny import tiny_run

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="no gradio: ./run.sh setup demo installs it"
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
# Runs the command and ends it at the first word with anybody but this machine.
ALONE = """
import os, runpy, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        where = arguments[1] if event != "socket.getaddrinfo" else arguments
        if isinstance(where, tuple) and where[0] not in ("127.0.0.1", "localhost", "::1", None):
            print(f"STRANGER {event} {where}", flush=True)
            os._exit(3)
sys.addaudithook(watch)
sys.argv = ["resnet.study.demo", *sys.argv[1:]]
runpy.run_module("resnet.study.demo", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    return tiny_run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def served(run, tmp_path_factory) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """(address, process, its folder for temporary files) of the command, started on a free port."""
    folder = tmp_path_factory.mktemp("served")
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, f"--checkpoint={run[1]}", "--port=0"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith("Demo "), line + process.stderr.read()
    yield line.split()[1], process, folder
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def answered(browser: Browser, file: Path, script: str, what: str) -> str:
    """Drop `file`, wait until `script` says something, clear the drop zone; what it said."""
    browser.until("!!document.querySelector('#drop input[type=file]')", "the drop zone")
    browser.choose_file("#drop input[type=file]", file)
    said = browser.until(script, what)
    browser.click("#drop button[aria-label]")
    return said


SENTENCE = "document.querySelector('#sentence .sentence')?.innerText"
TOP = "[...document.querySelectorAll('.confidence-set')].map(e => e.innerText).join('\\n')"
PICTURES = "[...document.querySelectorAll('#seen img, #heat img')].filter(i => i.complete && i.naturalWidth > 0).length"


@needs_gradio
@needs_browser
def test_a_picture_is_explained_and_bad_files_get_a_sentence(run, served, tmp_path):
    address, process, _ = served
    picture = sorted((run[0] / "test").rglob("*.jpg"))[0]
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(picture.read_bytes()[:300])
    (tmp_path / "bomb.png").write_bytes(bombs.huge_png())
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(demo.MOST_BYTES + 1)
    with Browser() as browser:
        browser.open(f"{address}/")
        browser.until("!!document.querySelector('#drop input[type=file]')", "the page")
        browser.choose_file("#drop input[type=file]", picture)
        browser.until(f"{PICTURES} === 2", "the pictures")
        named = browser.run(TOP)
        classes = json.loads((run[1] / "classes.json").read_text())
        assert all(name in named for name in classes)
        assert "%" in named
        assert "contract torch" in browser.run("document.querySelector('#how textarea, #how input').value")
        heat = "document.querySelector('#heat').innerText"
        most = browser.run("document.querySelector('.confidence-set').innerText").split()[0]
        assert most in browser.run(heat)
        other = next(name for name in classes if name != most)
        number = named.split("\n").index(other)
        browser.run(
            f"[...document.querySelectorAll('.confidence-set')].find(e => e.innerText.includes('{other}')).click()"
        )
        browser.until(f"{heat}.includes('{other}')", f"the heat of another class ({number})")
        browser.click("#drop button[aria-label]")
        assert "not an image" in answered(browser, tmp_path / "notes.jpg", SENTENCE, "a sentence")
        browser.until(f"!{SENTENCE}", "the sentence to go")
        assert "cut.jpg" in answered(browser, tmp_path / "cut.jpg", SENTENCE, "a sentence")
        browser.until(f"!{SENTENCE}", "the sentence to go")
        assert "pixels" in answered(browser, tmp_path / "bomb.png", SENTENCE, "a sentence")
        body = "document.body.innerText"
        browser.until("!!document.querySelector('#drop input[type=file]')", "the drop zone")
        browser.choose_file("#drop input[type=file]", tmp_path / "huge.jpg")
        browser.until(f"{body}.includes('maximum allowed size')", "a word on the size")
        assert "Traceback" not in browser.run(body)
        others = [each for each in browser.requests if not each.startswith((address, "data:", "blob:", "about:"))]
        assert others == []
        assert not [line for line in browser.console if "Content Security Policy" in line or "http://" in line], (
            browser.console
        )
    assert process.poll() is None


@needs_gradio
def test_nothing_is_fetched_for_a_stranger(served):
    address = served[0]

    def status(path: str, data: bytes | None = None, **headers: str) -> int:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address + path, data, headers), timeout=PATIENCE
            ) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status("/") == 200
    assert status("/", Host="evil.example") == 403
    assert status("/gradio_api/file=http://127.0.0.1:1/x") == 403
    assert status("/gradio_api/file=/etc/hostname") in (403, 404)
    # An address in place of a file: taken as a request, but the file that is no file is refused behind it.
    body = {"data": [{"path": "http://strangers.example/x.png", "meta": {"_type": "gradio.FileData"}}]}
    request = urllib.request.Request(
        f"{address}/gradio_api/call/explain", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        number = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/explain/{number}", timeout=PATIENCE) as answer:
        assert "event: error" in answer.read().decode()
    # Whoever had been asked, the process would have ended itself.
    assert status("/") == 200


@pytest.mark.parametrize(
    ("host", "asked", "refused"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:7860"}, False),
        ("127.0.0.1", {"host": "localhost:7860", "origin": "http://localhost:7860"}, False),
        ("127.0.0.1", {"host": "evil.example:7860"}, True),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "http://evil.example"}, True),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "null"}, True),
        ("0.0.0.0", {"host": "demo.example:7860", "origin": "http://demo.example:7860"}, False),
        ("0.0.0.0", {"host": "192.0.2.7:7860", "origin": "http://evil.example"}, True),
    ],
)
def test_what_another_page_sends_is_refused(host, asked, refused):
    """A browser uploads to anybody without asking: a stranger's page could fill this machine's disk."""
    headers = [(name.encode(), value.encode()) for name, value in asked.items()]
    assert demo.Guard(None, host)._refused({"headers": headers, "path": "/gradio_api/upload"}) == refused


@needs_gradio
def test_ctrl_c_ends_it_and_leaves_nothing(served):
    address, process, folder = served
    assert any(folder.iterdir())
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    assert process.wait(PATIENCE) == 130
    assert time.monotonic() - begun < 60
    assert not list(folder.glob("resnet-demo-*"))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=10)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--checkpoint=absent"], "no such folder"),
        (["--checkpoint=.", "--port=70000"], "--port=70000"),
        (["--checkpoint=.", "--port=x"], "--port"),
    ],
)
def test_a_slip_is_told(arguments, word, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", *arguments])
    with pytest.raises(InputError, match=word):
        demo.main()


def test_a_missing_gradio_names_the_command_that_installs_it(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", f"--checkpoint={run[1]}"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"run\.sh setup demo"):
        demo.main()


def test_an_address_that_is_taken_is_told():
    with demo.listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match="another port"):
            demo.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="cannot be served"):
        demo.listen("192.0.2.1", 0)
