"""A headless Chromium that is spoken to over a pipe (the DevTools protocol): clicks, files, requests, the console.

Nothing but the standard library: `--remote-debugging-pipe` takes JSON on one file descriptor and gives it on another.
"""

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = float(os.environ.get("TESTS_PATIENCE", 300))


class Browser:
    """One page in a browser of its own. A context manager.

    requests: the addresses of all that the page asked for. console: what it wrote there, and errors that none caught.
    """

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self._numbers = itertools.count(1)
        self._folder = tempfile.TemporaryDirectory(prefix="browser-")
        reader, theirs_out = os.pipe()
        theirs_in, writer = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--disable-background-networking",
            "--disable-component-update", "--no-first-run", f"--user-data-dir={self._folder.name}/profile",
            # Whatever asked for a name, nobody would answer.
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--window-size={width},{height}",
        ]  # fmt: skip
        # Chromium reads its commands from descriptor 3 and answers on 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "browser", CHROMIUM, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._reader, self._writer, self._buffer = reader, writer, b""
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer. Raises AssertionError with the browser's words."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(PATIENCE)
            assert answer is not None, f"{method}: the browser does not answer"
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next message, noted if it is an event; None when none comes in time."""
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._reader], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            self._buffer += os.read(self._reader, 1 << 20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        event, about = message.get("method", ""), message.get("params", {})
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            words = " ".join(str(part.get("value", part.get("description"))) for part in about["args"])
            self.console.append(f"{about['type']}: {words}")
        elif event == "Runtime.exceptionThrown":
            self.console.append(f"error: {json.dumps(about['exceptionDetails'])[:2000]}")
        elif event == "Log.entryAdded":
            self.console.append(f"{about['entry']['level']}: {about['entry']['text']} {about['entry'].get('url', '')}")
        return message

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, what: str) -> Any:
        """The value of `script` once it is truthy. Raises AssertionError naming `what` after PATIENCE."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"waited in vain for {what}; console: {self.console}"
            self._next(0.1)
        return value

    def choose_file(self, selector: str, file: Path) -> None:
        """Put a file into an <input type=file>, as a drop on it does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def click(self, selector: str) -> None:
        """A click of the mouse on the middle of the element."""
        where = json.dumps(selector)
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({where}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self) -> None:
        os.close(self._writer)
        os.close(self._reader)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder.name, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
