"""HTTP in front, workers behind: what may crash or hang is apart from what holds the connections.

``serve`` starts it. Taught in notebooks/14_serve_it.ipynb.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import multiprocessing
import os
import socket
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

START_S = 120  # how long a worker may take to check the file
AGAIN_S = 1  # until one that could not start is tried again
Reply = tuple[int, object]  # status, and the five best classes or a sentence


def work(*given: object) -> None:
    """Start as a worker; its libraries are imported there alone."""
    from notebooks.lessons.service import classifier

    classifier.work(*given)  # type: ignore[arg-type]


class Worker:
    """A process that answers batches. Pipes are all that it shares with us: no locks, no /dev/shm."""

    def __init__(self, options: argparse.Namespace, content: bytes) -> None:
        """Start it."""
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=work, args=(content, options, theirs))
        self.process.start()
        theirs.close()

    def hello(self) -> tuple[bytes, list[str]]:
        """Wait until it has checked the file; return the golden photo and what may come first.

        Raises:
            RuntimeError: if it refuses the file, or cannot start.
        """
        said: object = None
        with contextlib.suppress(EOFError, OSError):
            said = self.pipe.recv() if self.pipe.poll(START_S) else None
        if isinstance(said, tuple):
            return said
        self.end()
        raise RuntimeError(said or f"The worker ended before it could serve (exit code {self.process.exitcode}).")

    def ask(self, bodies: list[bytes]) -> list[Reply]:
        """Hand it a batch and wait. EOFError or OSError: it is dead."""
        self.pipe.send(bodies)
        return self.pipe.recv()

    def end(self) -> None:
        """Kill it: what it was asked is answered by then, or lost. SIGKILL ends one that is stopped, too."""
        self.process.kill()
        self.process.join(5)


@dataclass
class Picture:
    """What waits in the queue: a body, and where its answer goes."""

    body: bytes
    answer: asyncio.Future


class Pool:
    """One queue, and workers that each take from it as many pictures as a batch may hold."""

    def __init__(self, options: argparse.Namespace, content: bytes) -> None:
        """Keep the bytes: later workers get the same, whatever has become of the file since."""
        self.options, self.content, self.sha256 = options, content, hashlib.sha256(content).hexdigest()
        self.waiting = self.reading = 0
        self.golden, self.first = b"", [""]
        self.queue: asyncio.Queue[Picture] = asyncio.Queue()
        self.workers: list[Worker] = []
        self.threads = ThreadPoolExecutor(options.sessions)  # each waits for one worker

    def open(self) -> None:
        """Start the workers and wait until all serve.

        Raises:
            RuntimeError: with the sentence of one that does not.
        """
        # A fork server has the slow imports done, and its workers are copies; Windows has none.
        multiprocessing.set_start_method("forkserver" if hasattr(os, "fork") else "spawn")
        multiprocessing.set_forkserver_preload(["notebooks.lessons.service.classifier"])
        for _ in range(self.options.sessions):
            self.workers.append(Worker(self.options, self.content))
        for worker in self.workers:
            self.golden, self.first = worker.hello()

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.end()

    async def ask(self, body: bytes) -> Reply:
        """Queue a picture and wait for its answer, for a while."""
        if self.waiting >= self.options.queue:
            return 503, f"{self.waiting} pictures wait already."
        picture = Picture(body, asyncio.get_running_loop().create_future())
        self.waiting += 1
        try:
            async with asyncio.timeout(self.options.timeout_s):
                self.queue.put_nowait(picture)
                return await picture.answer
        except TimeoutError:
            return 504, f"No answer within {self.options.timeout_s:g} s: try again later."
        finally:
            self.waiting -= 1
            picture.body = b""  # it may stand in line for a while, but takes no memory

    def knows(self, reply: Reply) -> bool:
        """Say whether this is the golden photo's answer."""
        return reply[0] == 200 and reply[1][0][0] in self.first  # type: ignore[index]

    async def batch(self) -> list[Picture]:
        """Take what waits; where nobody comes for a while, the golden photo: does the worker still answer?"""
        try:
            async with asyncio.timeout(self.options.probe_s):
                batch = [await self.queue.get()]
        except TimeoutError:
            return [Picture(self.golden, asyncio.get_running_loop().create_future())]
        if self.queue.qsize() < self.options.batch - 1:
            await asyncio.sleep(self.options.wait_ms / 1000)
        while len(batch) < self.options.batch and not self.queue.empty():
            batch.append(self.queue.get_nowait())
        return [one for one in batch if not one.answer.done()]  # without those who gave up

    async def feed(self, place: int) -> None:
        """Give one worker batch after batch; replace it where it dies, hangs or forgets the golden photo."""
        while True:
            batch = await self.batch()
            bodies = [one.body for one in batch]
            if not self.workers[place].process.is_alive():
                await self.replace(place)
            try:
                async with asyncio.timeout(self.options.hung_s):
                    replies = await self.beside(self.workers[place].ask, bodies) if batch else []
                whole = len(replies) == len(batch)
            except (EOFError, OSError):  # TimeoutError is one, too
                whole = False
            if not whole:
                replies = [(500, "The worker was lost over this batch: another one goes on.")] * len(batch)
            for one, reply in zip(batch, replies, strict=True):
                if not one.answer.done():
                    one.answer.set_result(reply)
            if not whole or (bodies == [self.golden] and not self.knows(replies[0])):
                await self.replace(place)

    async def replace(self, place: int) -> None:
        """Kill a worker and start another one; where that fails, again after a second, for as long as it takes."""
        while True:
            self.workers[place].end()
            self.workers[place] = Worker(self.options, self.content)
            try:
                await self.beside(self.workers[place].hello)
                return
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                await asyncio.sleep(AGAIN_S)

    async def beside(self, function, *given):
        """Wait in a thread, so that the others go on."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *given)


async def receive(request: Request, limit: int) -> bytes:
    """Read the body to its end, so that a refusal arrives; keep no more of it than the limit."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        body += chunk if size <= limit else b""
    if size > limit:
        raise HTTPException(413, f"The picture has {size} bytes; at most {limit} are taken: make it smaller.")
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        accepted = {"Accept-Encoding": "identity"}
        raise HTTPException(415, f"The Content-Encoding is {coding!r}: send the picture as it is.", accepted)
    if not request.headers.get("content-type", "").lower().startswith("image/"):
        raise HTTPException(415, "Send the picture's bytes with a Content-Type such as image/jpeg.")
    return bytes(body)


def application(pool: Pool, options: argparse.Namespace) -> Starlette:
    """Return the service: POST /classify; GET /live (this process answers) and /ready (a worker does, and rightly)."""

    async def classify(request: Request) -> JSONResponse:
        if pool.reading >= 3 * options.queue:
            raise HTTPException(503, f"{pool.reading} pictures arrive already.", {"Retry-After": "1"})
        pool.reading += 1
        try:
            async with asyncio.timeout(options.body_s):
                body = await receive(request, options.max_bytes)
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(408, f"The whole picture did not arrive within {options.body_s:g} s.") from None
        finally:
            pool.reading -= 1
        status, said = await pool.ask(body)
        if status != 200:
            raise HTTPException(status, str(said), {"Retry-After": "1"} if status == 503 else None)
        return JSONResponse(said)

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({"waiting": pool.waiting, "workers": [worker.process.pid for worker in pool.workers]})

    async def ready(request: Request) -> JSONResponse:
        known = pool.knows(await pool.ask(pool.golden))
        said = {"ready": known, "file": Path(options.file).name, "sha256": pool.sha256}
        return JSONResponse(said, 200 if known else 503)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(pool.feed(place)) for place in range(options.sessions)]
        yield
        for task in tasks:
            task.cancel()

    routes = [Route("/classify", classify, methods=["POST"]), Route("/live", live), Route("/ready", ready)]
    app = Starlette(routes=routes, lifespan=lifespan)
    app.router.redirect_slashes = False
    return app


def serve(pool: Pool, options: argparse.Namespace, listener: socket.socket) -> None:
    """Serve until told to stop: then the address is closed first, and what was accepted is answered."""
    silent: dict[H11Protocol, None] = {}  # who has connected and not asked, the oldest first

    class Impatient(H11Protocol):
        """Hang up on who does not ask in time, and on the oldest of too many: newcomers get their turn."""

        def connection_made(self, transport):
            super().connection_made(transport)
            silent[self] = None
            self.loop.call_later(options.body_s, self.hang_up)
            if len(silent) > 8 * options.queue:
                next(iter(silent)).hang_up()

        def data_received(self, data):
            super().data_received(data)
            if self.cycle:
                silent.pop(self, None)

        def eof_received(self):
            return bool(self.cycle and not self.cycle.more_body)  # one that has said all may still want the answer

        def connection_lost(self, exc):
            silent.pop(self, None)
            super().connection_lost(exc)

        def hang_up(self):
            if self in silent:
                del silent[self]
                self.transport.close()

        def shutdown(self):
            if self not in silent:  # who has just connected may still ask
                super().shutdown()

    config = uvicorn.Config(
        application(pool, options),
        http=Impatient,
        ws="none",
        headers=[("Connection", "close")],
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(options.body_s + options.timeout_s) + 1,
    )
    uvicorn.Server(config).run(sockets=[listener])
