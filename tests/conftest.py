"""What every test runs under: no window, no network, none of the reader's settings, none of the reader's photos."""

import errno
import os
import shutil
import socket
import tempfile

import matplotlib
import pytest

from helpers import photos, settings

matplotlib.use("Agg")  # not MPLBACKEND=Agg: kernels would inherit it, and notebooks would store no figures

LOOPBACK = (None, "", "localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")  # one on this machine would lead out of it


NEEDED_GIB = 4  # of temporary files, at most at one time: measured


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")


def pytest_sessionstart():
    free = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if free < NEEDED_GIB:
        pytest.exit(
            f"no space left: the tests need {NEEDED_GIB} GiB in {tempfile.gettempdir()}; {free:.1f} are free", 3
        )


def pytest_collection_modifyitems(config, items):
    """Leave slow tests out, by name; tell xdist to keep a file's tests together, and those of the built course."""
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            reason = f"slow: {item.name.partition('[')[0]}; with it: python -m pytest --slow"
            item.add_marker(pytest.mark.skip(reason=reason))
        group = "course" if "course" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


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
