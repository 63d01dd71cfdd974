"""The report in a real browser: it sorts, opens pictures and shows figures under the pointer, and asks nobody."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from resnet.study.report_page import page
from resnet.study.report_template import policy
from resnet.study.run_record import read_run
from tests.tiny import tiny_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = Path(__file__).with_name("report_driver.js")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def driven(text: str) -> str:
    """The page with the driver in it; its policy lets that script run as well, and nothing more."""
    script = DRIVER.read_text(encoding="utf-8")
    own = re.search(r"'sha256-[^']+'", policy([script]))[0]
    assert text.count("script-src &#39;sha256-") == 1
    text = text.replace("script-src ", f"script-src {html.escape(own)} ", 1)
    return text.replace("</body>", f"<script>{script}</script></body>")


def browse(file: Path, width: int) -> tuple[dict, list[str]]:
    """What the driver saw, and what the console said."""
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={file.parent / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
            "--virtual-time-budget=20000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), re.findall(r':CONSOLE[^\]]*\] "(.*?)", source', done.stderr)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    return page(read_run(tiny_run(tmp_path_factory.mktemp("browser"))[1]))


@pytest.mark.parametrize("width", [1280, 800])
def test_a_reader_sorts_hovers_and_opens_a_cell(text, tmp_path, width):
    file = tmp_path / "report.html"
    file.write_text(driven(text), encoding="utf-8")
    seen, console = browse(file, width)
    assert "failed" not in seen, seen["failed"]
    assert (seen["violations"], seen["errors"], seen["requests"]) == ([], [], [])
    assert all(line.startswith("[bokeh") for line in console), console
    assert seen["figures"] >= 5
    assert seen["falling"] == sorted(seen["falling"], reverse=True)
    assert seen["rising"] == sorted(seen["rising"])
    assert seen["names"] == sorted(seen["names"])
    assert seen["dialog"]
    assert seen["closed"]
    assert len(seen["pictures"]) == min(int(seen["cell"]), 12)
    assert all(seen["pictures"])
    hover = seen["hover"]
    assert str(hover["step"]) in hover["said"]
    assert any(abs(float(word) - hover["value"]) < 1e-4 for word in hover["said"] if re.fullmatch(r"\d+\.\d{4,}", word))
    assert seen["wider"] == 0
