"""A trained network in the browser: drop a picture, see what the network predicts and where it looked.

python -m resnet.study.demo --checkpoint=DIR [--port=0] [--host=127.0.0.1]

Needs gradio (`./run.sh setup demo`). The page and this process load nothing from the internet; Ctrl-C ends it.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from input_pipeline.errors import InputError, printable
from resnet import command

# What a browser may upload; how many pixels may come out of it is the decoder's to say.
MOST_BYTES = 64 << 20
# The page's scripts are gradio's own, some of them inline; whatever they are, they can reach nobody but this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
# Set before gradio is imported, which reads them then.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
}
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def main() -> int:
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="a run's workdir (best checkpoint), a step's folder, or converted weights"
    )
    parser.add_argument("--port", type=int, default=0, help="port to serve on (default: a free one)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, for this machine only)"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.port < 65536:
        raise InputError(f"--port={arguments.port} must lie between 0 and 65535; 0 picks a free one")
    command.check_checkpoint(arguments.checkpoint)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed; ./run.sh setup demo installs requirements-demo.txt")
    listener = listen(arguments.host, arguments.port)
    with listener, tempfile.TemporaryDirectory(prefix="resnet-demo-") as folder:
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": folder})
        # Here, not above: it takes seconds to import, and a slip in the flags is told at once.
        from resnet.study.demo_page import Explainer
        from resnet.study.inference import load_model

        explainer = Explainer(load_model(arguments.checkpoint))
        explainer.warm_up()
        return serve(explainer, listener, arguments.host)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises InputError for one that is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no address"
        raise InputError(
            f"--host={printable(host)} --port={port}: cannot be served on ({reason}); use another port, or 0 for a "
            "free one"
        ) from error
    return listener


def serve(explainer: Any, listener: socket.socket, host: str) -> int:
    """Serve the page on `listener` until a signal comes; the exit code, 128 + the signal's number."""
    import uvicorn

    from resnet.study.demo_page import application
    from resnet.train.interruption import Interruption

    application_ = Guard(application(explainer, MOST_BYTES), host)
    server = uvicorn.Server(uvicorn.Config(application_, log_level="error", access_log=False, lifespan="on"))
    # In a thread of its own uvicorn takes no signals: they are ours, as everywhere.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    shown = f"[{host}]" if ":" in host else host
    with Interruption(said=b"\n", terminated=b"\n", afterwards=command.leave_at_once) as interruption:
        thread.start()
        while thread.is_alive() and not server.started:
            thread.join(0.05)
        print(f"Demo      http://{shown}:{listener.getsockname()[1]}   (Ctrl-C ends it)", flush=True)
        while thread.is_alive() and not interruption.requested:
            thread.join(0.2)
        server.should_exit = True
        thread.join(5)
        if not interruption.requested:
            print("error: the server ended by itself", file=sys.stderr)
            return 1
        return interruption.exit_code


class Guard:
    """Around an ASGI application: nothing is asked of anybody else, by the page or on its behalf.

    Answers carry POLICY. A request to a name that is none of this server's is refused (a stranger's page could have its
    name lead here), one that another page sends, and one to fetch an address for the browser, which gradio's file route
    would do.
    """

    def __init__(self, application: Any, host: str) -> None:
        self._application = application
        everywhere = host in ("0.0.0.0", "::")
        self._names = None if everywhere else {host, "127.0.0.1", "localhost", "[::1]", f"[{host}]"}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http" or self._refused(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"refused"})
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._application(scope, receive, with_policy)

    def _refused(self, scope: Message) -> bool:
        headers = dict(scope["headers"])
        name = headers.get(b"host", b"").decode("latin-1")
        bare = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
        strange = self._names is not None and bare not in self._names
        # Browsers say which page a request comes from, and send an upload to anybody without asking first.
        origin = headers.get(b"origin", b"").decode("latin-1")
        strange = strange or (bool(origin) and origin.partition("://")[2] != name)
        path = scope["path"].lower()
        return strange or "=http:" in path or "=https:" in path


if __name__ == "__main__":
    command.run(main)
