"""The same file on Ray Serve: python -m notebooks.lessons.service.ray_service FILE.

Taught in notebooks/14_serve_it.ipynb. It may run in an environment of its own: Ray, ONNX Runtime and Pillow suffice.
"""

import asyncio
import io
import signal
import socket
import sys
import time

import numpy as np
import onnxruntime as ort
import ray
from PIL import Image
from ray import serve

from notebooks.lessons.service.serve import end_with_starter


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32)
class Classifier:
    """A replica: one session, one thread; calls are collected into batches, and run one by one."""

    def __init__(self, path: str) -> None:
        """Open the file."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.002)
    async def classify(self, bodies: list[bytes]) -> list[list[int]]:
        """Return the five best classes of each picture."""
        return await asyncio.to_thread(self.run, bodies)  # else the replica could take no request meanwhile

    def run(self, bodies: list[bytes]) -> list[list[int]]:
        """Answer one picture after the other."""
        pictures = [np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies]
        return [self.session.run(["classes"], {"picture": picture})[0][0].tolist() for picture in pictures]

    async def __call__(self, request):
        """Answer a picture; on GET, say that all is well."""
        return await self.classify(await request.body()) if request.method == "POST" else "ok"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray ends its processes as Python ends
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    with socket.create_server(("127.0.0.1", 0)) as free:  # after Ray has taken its own ports
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    end_with_starter()
    serve.run(Classifier.bind(sys.argv[1]))  # type: ignore[attr-defined]  # the decorator gives it
    print(f"http://127.0.0.1:{port}", flush=True)
    while True:
        time.sleep(1)
