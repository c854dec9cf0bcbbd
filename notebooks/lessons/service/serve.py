"""Serve one classifier's file: python -m notebooks.lessons.service.serve FILE; then POST a picture to /classify.

Start it in the course's folder; Ctrl-C stops it. Taught in notebooks/14_serve_it.ipynb.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import stat
import sys
import threading
import time
from multiprocessing.synchronize import Event


def arguments() -> argparse.Namespace:
    """Return the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8014, help="0 takes a free one")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each session")
    parser.add_argument("--batch", type=int, default=1, help="pictures that a session takes at once")
    parser.add_argument("--wait-ms", type=float, default=0, help="how long a batch waits for more pictures")
    parser.add_argument("--outside", action="store_true", help="prepare with torchvision, not in the graph")
    parser.add_argument("--queue", type=int, default=64, help="pictures that may wait")
    parser.add_argument("--timeout-s", type=float, default=5)
    parser.add_argument("--body-s", type=float, default=5)
    parser.add_argument("--max-bytes", type=int, default=10_000_000)
    parser.add_argument("--max-pixels", type=int, default=20_000_000, help="of a decoded picture")
    return parser.parse_args()


def work(options: argparse.Namespace, listener: socket.socket, ready: Event) -> None:
    """Serve until told to stop, or until the supervisor is gone; what was accepted is answered first."""
    import uvicorn  # here, and not above: the supervisor needs none of them
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from notebooks.lessons.service import server

    try:
        engine = server.Engine(options)
    except ValueError as error:
        sys.exit(str(error))

    class Impatient(H11Protocol):
        """Hang up on who has connected and not asked in time."""

        def connection_made(self, transport):
            super().connection_made(transport)
            if len(self.connections) > 8 * options.queue:
                transport.abort()
            self.loop.call_later(options.body_s, lambda: self.cycle or transport.close())

    limits = {"http": Impatient, "limit_concurrency": 4 * options.queue, "headers": [("Connection", "close")]}
    running = uvicorn.Server(uvicorn.Config(server.application(engine, options), log_level="warning", **limits))

    def stop_when_alone():
        multiprocessing.parent_process().join()
        running.should_exit = True

    threading.Thread(target=stop_when_alone, daemon=True).start()
    ready.set()
    running.run(sockets=[listener])


def supervise(options: argparse.Namespace, listener: socket.socket) -> None:
    """Start a worker and wait for its end: one that died is replaced. Ends when the workers cannot serve."""
    # A fork server has the slow imports done, and its workers are copies; Windows has none.
    multiprocessing.set_start_method("forkserver" if hasattr(os, "fork") else "spawn")
    multiprocessing.set_forkserver_preload(["notebooks.lessons.service.server", "uvicorn.protocols.http.h11_impl"])
    tries = 1  # the first worker must serve; later, five in a row may fail
    while tries:
        ready = multiprocessing.Event()
        worker = multiprocessing.Process(target=work, args=(options, listener, ready))
        try:
            worker.start()
            worker.join()
        except BaseException:  # Ctrl-C or SIGTERM: the worker finishes what it has accepted
            if worker.pid:
                worker.terminate()
                worker.join()
            raise
        tries = 5 if ready.is_set() else tries - 1
        if tries and not ready.is_set():
            time.sleep(1)
    sys.exit(f"The worker ended before it could serve (exit code {worker.exitcode}).")


def end_with_starter() -> None:
    """If a program holds the other end of our input, end when it lets go of it."""

    def watch():
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Take the address, say it, and keep a worker behind it."""
    options = arguments()
    try:
        listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    except OSError as error:
        sys.exit(f"Port {options.port} cannot be had ({error}): choose another with --port; 0 takes a free one.")
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    end_with_starter()
    supervise(options, listener)


if __name__ == "__main__":
    main()
