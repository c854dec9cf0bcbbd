"""What every test runs under: no window, no network, none of the reader's settings, none of the reader's photos."""

import errno
import os
import socket

import matplotlib
import pytest

from helpers import photos, settings

matplotlib.use("Agg")  # not MPLBACKEND=Agg: kernels would inherit it, and notebooks would store no figures

LOOPBACK = (None, "", "localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # one on this machine would lead out of it


@pytest.fixture(scope="session", autouse=True)
def hosts_tried():
    """Refuse every connection to another machine, as a pulled cable does; yield the list of the hosts tried."""
    tried = []
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def leads_out(sock, address):
        if sock.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            tried.append(address[0])
            return True
        return False

    def guarded_connect(self, address):
        if leads_out(self, address):
            raise OSError(errno.ENETUNREACH, "the tests run without a network")
        return connect(self, address)

    def guarded_connect_ex(self, address):
        return errno.ENETUNREACH if leads_out(self, address) else connect_ex(self, address)

    def guarded_getaddrinfo(host, *args, **kwargs):
        if host not in LOOPBACK:
            tried.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "the tests run without a network")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)
        yield tried


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Take away the course's settings and the proxies of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("COURSE_") or name.lower() in PROXIES:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """Return the table of the sample photos, copied into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "IMAGES", tmp_path_factory.mktemp("images"))
        return photos.sample_photos()
