"""A classifier's file behind HTTP; ``serve`` starts it and keeps it alive.

Taught in notebooks/14_serve_it.ipynb.
"""

import argparse
import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from helpers import photos
from notebooks.lessons.service import classifier


class Engine:
    """Sessions behind one queue: pictures wait, each session takes as many as its batch may hold."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Check the file and open its sessions: one for the preparation, as many as you like for the network."""
        photos.MAX_PIXELS = options.max_pixels  # a decoder cannot be stopped: what it may take is bounded
        model, self.facts = classifier.check(options.file)
        front, back = classifier.halves(model)
        inside = classifier.open_session(front, 1)
        self.prepare = lambda photo: inside.run(None, {"picture": np.asarray(photo)})[0]
        if options.outside:
            self.prepare = classifier.outside(self.facts)
        self.networks = [classifier.open_session(back, options.threads) for _ in range(options.sessions)]
        self.options, self.waiting = options, 0
        self.queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future]] = asyncio.Queue()
        self.decoders = ThreadPoolExecutor(max(options.sessions, options.threads))

    def read(self, body: bytes) -> np.ndarray:
        """Decode and prepare one picture, in one go: no more of them lie decoded than there are threads."""
        return self.prepare(photos.open_photo(io.BytesIO(body)))

    async def answer(self, body: bytes) -> tuple[list[int], list[float]]:
        """Read one picture, queue it, wait; return its classes and their probabilities."""
        loop = asyncio.get_running_loop()
        pixels, answer = await loop.run_in_executor(self.decoders, self.read, body), loop.create_future()
        self.queue.put_nowait((pixels, answer))
        return await answer

    async def work(self, network: ort.InferenceSession) -> None:
        """One session's loop: take what waits, run it as one batch, hand the answers out."""
        while True:
            batch = [await self.queue.get()]
            if self.queue.qsize() < self.options.batch - 1:
                await asyncio.sleep(self.options.wait_ms / 1000)
            while len(batch) < self.options.batch and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            batch = [one for one in batch if not one[1].done()]  # without those who gave up
            if not batch:
                continue
            try:
                pixels = np.concatenate([pixels for pixels, _ in batch])
                outputs = await asyncio.to_thread(network.run, None, {"pixels": pixels})
                rows: list = list(zip(*(output.tolist() for output in outputs), strict=True))
                if len(rows) != len(batch):
                    raise ValueError(f"The network gave {len(rows)} answers for {len(batch)} pictures.")
            except Exception as error:  # these pictures get a 500, the others go on
                rows = [error] * len(batch)
            for (_, answer), row in zip(batch, rows, strict=True):
                if not answer.done():
                    answer.set_exception(row) if isinstance(row, Exception) else answer.set_result(row)


async def receive(request: Request, limit: int) -> bytes:
    """Read the body to its end, so that a refusal arrives; keep no more of it than the limit."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        body += chunk if size <= limit else b""
    if size > limit:
        raise HTTPException(413, f"The picture has {size} bytes; at most {limit} are taken: make it smaller.")
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(415, "Send the picture's bytes with a Content-Type such as image/jpeg.")
    return bytes(body)


def application(engine: Engine, options: argparse.Namespace) -> Starlette:
    """Return the service: POST /classify, and GET /health, which tells the worker's process id."""

    async def classify(request: Request) -> JSONResponse:
        try:
            async with asyncio.timeout(options.body_s):
                body = await receive(request, options.max_bytes)
        except (TimeoutError, ClientDisconnect):
            raise HTTPException(408, f"The whole picture did not arrive within {options.body_s:g} s.") from None
        if engine.waiting >= options.queue:
            raise HTTPException(503, f"{engine.waiting} pictures wait already.", {"Retry-After": "1"})
        engine.waiting += 1
        try:
            async with asyncio.timeout(options.timeout_s):
                classes, shares = await engine.answer(body)
        except photos.PhotoError as error:
            raise HTTPException(413 if isinstance(error, photos.TooManyPixelsError) else 400, str(error)) from None
        except TimeoutError:
            raise HTTPException(504, f"No answer within {options.timeout_s:g} s: try again later.") from None
        finally:
            engine.waiting -= 1
        english, chinese = engine.facts["names"]["english"], engine.facts["names"]["chinese"]
        return JSONResponse([[english[c], chinese[c], round(p, 5)] for c, p in zip(classes, shares, strict=True)])

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"pid": os.getpid(), "waiting": engine.waiting, "file": options.file})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(engine.work(network)) for network in engine.networks]
        yield
        for task in tasks:
            task.cancel()

    routes = [Route("/classify", classify, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan)
