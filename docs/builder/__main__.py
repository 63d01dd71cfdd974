"""Builds the documentation into a static site; a broken link, a missing page or any other warning fails it.

    ./run.sh docs                  builds site/html
    ./run.sh docs serve            builds it and shows it on this machine (http://127.0.0.1:8000)

Nothing of the project is imported: neither JAX nor TensorFlow needs to be installed.
"""

import argparse
import functools
import http.server
import subprocess
import sys
from pathlib import Path

from docs.builder.links import ROOT
from docs.builder.pages import BrokenLink, gather


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run.sh docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("build", "serve"), default="build")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site (default: site)")
    parser.add_argument("--port", type=int, default=8000, help="serve: where on this machine (default: 8000)")
    arguments = parser.parse_args()
    code = build(arguments.out)
    if code == 0 and arguments.what == "serve":
        serve(arguments.out / "html", arguments.port)
    return code


def build(out: Path) -> int:
    """Build out/html from out/source, which is gathered anew; 0, or 2 where a page is at fault."""
    try:
        gather(out / "source")
    except (BrokenLink, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sphinx = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--quiet", "--jobs", "auto"]
    done = subprocess.run([*sphinx, "--doctree-dir", out / "doctrees", out / "source", out / "html"], check=False)
    if done.returncode:
        print("error: the site has the faults above; fix the pages", file=sys.stderr)
        return 2
    print(f"The site is in {out / 'html'}: open index.html there, or ./run.sh docs serve")
    return 0


def serve(folder: Path, port: int) -> None:
    """Show `folder` on loopback until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port} (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    sys.exit(main())
