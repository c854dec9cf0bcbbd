"""The server that everybody writes first: python -m notebooks.lessons.service.naive [--port PORT].

Taught in notebooks/14_serve_it.ipynb.
"""

import io
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import pandas as pd
from PIL import Image

from helpers import models, settings
from notebooks.lessons.service.serve import end_with_starter


def class_names() -> dict[int, str]:
    """Read the class table and loop over it, as the naive server does for each picture."""
    table = pd.read_csv(settings.DATA / "imagenet_classes.csv")
    return {row["id"]: row["chinese"] for _, row in table.iterrows()}


class Naive(BaseHTTPRequestHandler):
    """One picture at a time, in PyTorch; the class table is read and looped over for each."""

    def do_GET(self) -> None:
        """Say that all is well."""
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        """Answer a picture with the name of its first class."""
        picture = Image.open(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"])))).convert("RGB")
        scores = network(weights.preprocessing(picture)[None]).softmax(1)[0].tolist()
        names = class_names()
        self.do_GET()
        self.wfile.write(names[max(range(1000), key=scores.__getitem__)].encode())

    def log_message(self, *words: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    network, weights = models.load_model("efficientnet_lite0")
    HTTPServer.request_queue_size = 512  # of its own it refuses the sixth in line
    server = HTTPServer(("127.0.0.1", int(sys.argv[-1])), Naive)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    end_with_starter()
    server.serve_forever()
