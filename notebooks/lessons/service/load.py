"""Offer pictures at random moments, whatever the service does.

``python -m notebooks.lessons.service.load PORT FOLDER RATE SECONDS SEED USERS [ARRIVALS]``; the last is a file of
arrivals, to offer the same load once more. Taught in notebooks/14_serve_it.ipynb.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HEAD = "POST /classify HTTP/1.1\r\nHost: load\r\nConnection: close\r\n"
HEAD += "Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"


class Load:
    """A load: the pictures of a folder, at a rate per second (open loop) and by some users (closed loop)."""

    def __init__(self, port: str, folder: str, *numbers: str) -> None:
        """Read the pictures; the numbers are rate, seconds, seed and users."""
        self.port, (self.rate, self.seconds, self.seed, self.users) = int(port), map(float, numbers)
        self.photos = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        self.random = random.Random(int(self.seed))
        self.answers: list[tuple[float, int, float]] = []  # intended start in s, status (0: none came), latency in ms

    async def ask(self, photo: bytes) -> int:
        """Send one picture over a connection of its own, as strangers do; return the status."""
        try:
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(HEAD.format(len(photo)).encode() + photo)
                words = (await reader.read()).split(maxsplit=2)
                writer.close()
                return int(words[1]) if words else 0
        except (OSError, TimeoutError):
            return 0

    def arrivals(self) -> Iterator[tuple[float, int]]:
        """Yield moments in s, and pictures: at random, on average rate per second."""
        due = 0.0
        while self.rate and (due := due + self.random.expovariate(self.rate)) < self.seconds:
            yield due, self.random.randrange(len(self.photos))

    async def arrive(self, start: float, due: float, photo: int) -> None:
        """Open loop: wait for the moment, not for anybody's answer; the clock counts from that moment."""
        await asyncio.sleep(start + due - time.perf_counter())
        status = await self.ask(self.photos[photo])
        self.answers.append((due, status, 1000 * (time.perf_counter() - start - due)))

    async def user(self, start: float) -> None:
        """Closed loop: the next picture only after the answer."""
        while (sent := time.perf_counter()) < start + self.seconds:
            status = await self.ask(self.random.choice(self.photos))
            self.answers.append((sent - start, status, 1000 * (time.perf_counter() - sent)))

    async def offer(self, planned: list[tuple[float, int]]) -> None:
        """Let all arrive, and all users ask."""
        start = time.perf_counter() + 0.05
        users = (self.user(start - 0.05) for _ in range(int(self.users)))
        await asyncio.gather(*users, *(self.arrive(start, *one) for one in planned))


if __name__ == "__main__":
    load, replayed = Load(*sys.argv[1:7]), sys.argv[7:]
    asyncio.run(load.offer(json.loads(Path(replayed[0]).read_text()) if replayed else list(load.arrivals())))
    print(json.dumps({"answers": load.answers, "cpu_share": time.process_time() / load.seconds}))
