"""What clients do, well or badly: the bytes that they send. Each is a row of notebook 14's table, and a test."""

import socket
from dataclasses import dataclass


@dataclass
class Client:
    """Bytes that are sent at once; a client that closes its half says that no more will come."""

    sent: bytes
    closes: bool = False


def post(body: bytes, *headers: str, kind: str = "image/jpeg", path: str = "/classify", length: int = -1) -> bytes:
    """Return a request; the length is the body's, if not given."""
    length = len(body) if length < 0 else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def clients(photo: bytes, max_bytes: int) -> dict[str, Client]:
    """Return by what they do: clients with a photo (JPEG), and a service that takes so many bytes."""
    half = photo[: len(photo) // 2]
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(photo), photo)
    chunked = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + chunk
    return {
        "sends a photo": Client(post(photo)),
        "says IMAGE/JPEG": Client(post(photo, kind="IMAGE/JPEG")),
        "sends it in chunks": Client(chunked),
        "closes its half after the photo": Client(post(photo), closes=True),
        "closes its half within the photo": Client(post(half, length=len(photo)), closes=True),
        "says text/plain": Client(post(photo, kind="text/plain")),
        "says that it is packed": Client(post(photo, "Content-Encoding: gzip")),
        "sends nothing in it": Client(post(b"")),
        "sends a web page": Client(post(b"<html></html>")),
        "sends half a photo as a whole": Client(post(half)),
        "sends too many bytes": Client(post(bytes(max_bytes + 1))),
        "claims 50,000 x 50,000 pixels": Client(post(b"P6 50000 50000 255\n")),
        "asks for /classify/": Client(post(photo, path="/classify/")),
        "asks with GET": Client(b"GET /classify HTTP/1.1\r\nHost: x\r\n\r\n"),
        "speaks no HTTP": Client(b"hello\r\n\r\n"),
        "stops within the photo": Client(post(half, length=len(photo))),
        "stops within the head": Client(b"POST /classify HT"),
        "connects and says nothing": Client(b""),
    }


def treat(url: str, client: Client) -> tuple[int, str]:
    """Be that client; return the status (0: hung up on, without a word) and what was said."""
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(client.sent)
        if client.closes:
            connection.shutdown(socket.SHUT_WR)
        head, _, said = b"".join(iter(lambda: connection.recv(9999), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, said.decode()
