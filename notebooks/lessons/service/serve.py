"""Serve one classifier's file: python -m notebooks.lessons.service.serve FILE; then POST a picture to /classify.

Start it in the course's folder; Ctrl-C stops it. Taught in notebooks/14_serve_it.ipynb.
"""

import argparse
import contextlib
import math
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def number(kind: Callable[[str], float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """Return a reader of an option that must be a finite number within bounds."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            bounds = f"from {least} to {most}" if math.isfinite(most) else f"of {least} or more"
            raise argparse.ArgumentTypeError(f"{text!r} given; needed is {kind.__name__} {bounds}.")
        return value

    return read


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count, seconds = number(int, 1), number(float, 0.01)
    parser.add_argument("file")
    parser.add_argument("--host", default="127.0.0.1", help="who may ask: only this machine, if not told otherwise")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8014, help="0 takes a free one")
    parser.add_argument("--sessions", type=count, default=1, help="workers, each with a session of its own")
    parser.add_argument("--threads", type=count, default=1, help="of each session")
    parser.add_argument("--batch", type=count, default=1, help="pictures that a session takes at once")
    parser.add_argument("--wait-ms", type=number(float, 0, 10_000), default=0.0, help="for more pictures of a batch")
    parser.add_argument("--outside", action="store_true", help="prepare with torchvision, not in the graph")
    parser.add_argument("--queue", type=count, default=64, help="pictures that may wait")
    parser.add_argument("--timeout-s", type=seconds, default=5.0, help="for an answer")
    parser.add_argument("--body-s", type=seconds, default=5.0, help="for a picture to arrive")
    parser.add_argument("--hung-s", type=seconds, default=20.0, help="a worker over one batch: then it is replaced")
    parser.add_argument("--probe-s", type=seconds, default=5.0, help="an idle worker is asked about the golden photo")
    parser.add_argument("--max-bytes", type=count, default=10_000_000)
    parser.add_argument("--max-pixels", type=count, default=20_000_000, help="of a decoded picture")
    return parser.parse_args(given)


def end_with_starter() -> None:
    """If a program holds the other end of our input, end when it lets go of it."""

    def watch():
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Take the address, start the workers, say the address once they serve, and serve."""
    from notebooks.lessons.service import server  # here: other programs want end_with_starter alone

    options = arguments()
    try:
        content = Path(options.file).read_bytes()
    except OSError as error:
        sys.exit(f"{options.file} cannot be read ({error.strerror}): check the path.")
    try:
        listener = socket.create_server((options.host, options.port), backlog=1024)
    except OSError as error:
        sys.exit(f"Port {options.port} cannot be had ({error}): choose another with --port; 0 takes a free one.")
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: sys.exit())
    end_with_starter()
    with contextlib.closing(server.Pool(options, content)) as pool:
        try:
            pool.open()
        except RuntimeError as error:
            sys.exit(str(error))
        print(f"http://{options.host}:{listener.getsockname()[1]}", flush=True)
        server.serve(pool, options, listener)


if __name__ == "__main__":
    main()
