"""`python docs` builds the site, `python docs --serve` also shows it.

Every page's code is executed, every warning is an error.
"""

import argparse
import functools
import http.server
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
SITE = HERE / "_build" / "html"


def main() -> int:
    """Builds, and serves if asked to; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python docs", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="serve it afterwards")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("pages", nargs="*", help="only these pages' files, for a look")
    options = parser.parse_args()
    flags = ["-W", "--keep-going", "-T", "-b", "html"]
    cache = str(HERE / "_build" / "doctrees")
    status = build_main([*flags, "-d", cache, str(HERE), str(SITE), *options.pages])
    if status:
        return status
    print(f"built {SITE / 'index.html'}")
    if options.serve:
        handler = functools.partial(
            http.server.SimpleHTTPRequestHandler, directory=SITE
        )
        with http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler) as s:
            print(f"http://127.0.0.1:{options.port}  (Ctrl-C ends)")
            try:
                s.serve_forever()
            except KeyboardInterrupt:
                print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
