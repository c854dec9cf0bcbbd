"""Start a service as a process of its own, and ask it.

Taught in notebooks/14_serve_it.ipynb.
"""

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from helpers import settings

PROGRAMS = "notebooks.lessons.service"


@contextlib.contextmanager
def running(*options: object, program: str = "serve", python: str | Path = sys.executable) -> Iterator[str]:
    """Start a service on a free port; give its address; end it whatever happens.

    Args:
        options: of its command line.
        program: the module of ``notebooks.lessons.service``.
        python: that runs it.
    Raises:
        RuntimeError: if it does not answer; the message ends with what it said (``data/exports/14/service.log``).
    """
    command = [python, "-m", f"{PROGRAMS}.{program}", *map(str, options), "--port", "0"]
    log_file = settings.exports_folder("14") / "service.log"
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=settings.ROOT
        ) as process,
    ):
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            try:
                ask(f"{url}/ready")
            except (OSError, ValueError):  # it ended before it could serve, or even before it had an address
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)  # and says why
                process.terminate()
                process.wait()
                said = log_file.read_text().strip().splitlines()[-2:]
                raise RuntimeError(f"{program} does not serve. It said: {' '.join(said)}") from None
            yield url
        finally:
            process.terminate()


def report(program: str, url: str, *options: object) -> dict:
    """Run a program that offers a load to a service; return what it reports."""
    command = [sys.executable, "-m", f"{PROGRAMS}.{program}", url.rsplit(":", 1)[1], *map(str, options)]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ask(url: str, body: bytes | None = None, kind: str = "image/jpeg") -> tuple[int, str]:
    """GET, or POST a body; return status and text."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def live(url: str) -> dict:
    """Return what the service says of itself: how many pictures wait, and its workers' process ids."""
    return json.loads(ask(f"{url}/live")[1])


def new_worker(url: str, old: int) -> None:
    """Wait until a worker is gone and the service is ready without it.

    Raises:
        TimeoutError: after a minute.
    """
    limit = time.perf_counter() + 60
    while time.perf_counter() < limit:
        if old not in live(url)["workers"] and ask(f"{url}/ready")[0] == 200:
            return
        time.sleep(0.02)
    raise TimeoutError("No new worker within 60 s: data/exports/14/service.log says why.")
