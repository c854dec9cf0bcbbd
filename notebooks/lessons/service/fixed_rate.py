"""A server with a fixed rate (M/D/1): every picture takes 20 ms, one after the other.

``python -m notebooks.lessons.service.fixed_rate`` starts it. Taught in notebooks/14_serve_it.ipynb.
"""

import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from notebooks.lessons.service.serve import end_with_starter

done: list[float] = []  # when each picture was done, by the server's own clock, in s


class FixedRate(BaseHTTPRequestHandler):
    """GET tells when each picture was done; POST takes one."""

    def reply(self, text: str) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        """Tell the moments."""
        self.reply(json.dumps(done))

    def do_POST(self) -> None:
        """Take a picture, and 20 ms."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.02)
        self.reply("")
        done.append(time.perf_counter())

    def log_message(self, *words: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    HTTPServer.request_queue_size = 512  # as many may stand in line
    server = HTTPServer(("127.0.0.1", 0), FixedRate)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    end_with_starter()
    server.serve_forever()
