"""What the tests of the course share: copies of it, a build of a copy, and ways to read what it made."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from course import notebooks
from helpers import settings

NOTEBOOKS = notebooks.notebooks()
OFFLINE = settings.WEIGHT_CHOICES[-1]  # weights that nobody asks a network for
REFUSED = "refused by "  # what a check of a wrong answer prints
ASK = """{answer}
try:
    said = check_{number}()
except Exception as error:
    said = "{refused}" + type(error).__name__
print("check {number}:", said)"""

# Runs in every kernel before its first cell: a pulled network cable, and a list of who pulled at it.
NO_NETWORK = """
import os as _os, pathlib as _pathlib, socket as _socket
_os.environ.pop("https_proxy", None)
def _guard(call, host_of):
    def guarded(*args, **kwargs):
        if (host := host_of(*args)) not in (None, "", "127.0.0.1", "localhost", "::1"):
            with _pathlib.Path({tried!r}).open("a") as file:
                file.write(f"{{host}}\\n")
            raise _socket.gaierror(-2, "the tests run without a network")
        return call(*args, **kwargs)
    return guarded
def _peer(sock, address):
    return address[0] if sock.family in (_socket.AF_INET, _socket.AF_INET6) else None
_socket.getaddrinfo = _guard(_socket.getaddrinfo, lambda host, *rest: host)
_socket.socket.connect, _socket.socket.connect_ex = (
    _guard(call, _peer) for call in (_socket.socket.connect, _socket.socket.connect_ex)
)
"""


def tags(cell):
    """Return a cell's tags."""
    return set(cell.metadata.get("tags", ()))


def code_cells(nb, tag=None):
    """Return a notebook's code cells, all or those with a tag."""
    return [cell for cell in nb.cells if cell.cell_type == "code" and (tag is None or tag in tags(cell))]


def printed(cell):
    """Return what a cell printed; one print may arrive as several outputs, its newline alone."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell):
    """Return how many pictures a cell shows."""
    kinds = [kind for output in cell.get("outputs", ()) for kind in output.get("data", {})]
    return sum(kind in ("image/png", "image/jpeg") for kind in kinds)


def wrong_answers(nb):
    """Return the number of the exercise and the code of each wrong answer, from the metadata of the check cells."""
    checks = enumerate(code_cells(nb, "check"), start=1)
    return [(number, answer) for number, cell in checks for answer in cell.metadata.get("course", {}).get("wrong", ())]


def copy_course(target, *, lessons=True):
    """Copy what the commands need, the lessons without outputs, so that only new ones can pass."""
    unneeded = shutil.ignore_patterns("exports", "_build", "__pycache__", ".ipynb_checkpoints")
    for name in ("course", "helpers", "data", "notebooks"):
        shutil.copytree(settings.ROOT / name, target / name, ignore=unneeded)
    for path in (target / "notebooks").glob("*.ipynb"):
        nb = notebooks.read(path)
        for cell in code_cells(nb):
            cell.outputs, cell.execution_count = [], None
        notebooks.write(path, nb) if lessons else path.unlink()
    return target


def start(root, *options, startup="", **environment):
    """Start the build command in a copy of the course, ``startup`` in each kernel first; return the process."""
    profile = root.parent / "ipython" / "profile_default" / "startup"
    profile.mkdir(parents=True, exist_ok=True)
    guard = NO_NETWORK.format(tried=str(root.parent / "tried.txt"))
    (profile / "00.py").write_text(guard + startup, encoding="utf-8")
    own = ("COURSE_", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    plain.pop("CI", None)  # which alone would keep OpenVINO from asking the network
    return subprocess.Popen(
        [sys.executable, "-m", "course", "build", "--effort", "quick", *options],
        cwd=root,
        env={**plain, "COURSE_WEIGHTS": OFFLINE, "IPYTHONDIR": str(root.parent / "ipython"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def build(root, *options, **choices):
    """Build a copy of the course as ``start`` does and wait; return the finished process."""
    process = start(root, *options, **choices)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@dataclass(frozen=True)
class Built:
    """A built course: its folder, and the build command's process when it was done."""

    root: Path
    done: subprocess.CompletedProcess

    @property
    def site(self):
        return self.root / "_build" / "html"

    def nb(self, path):
        """Return a notebook as the site shows it, with the outputs of this run."""
        return notebooks.read(self.root / "_build" / "staged" / path.name)


def make(path, *code, alone=False):
    """Write a small notebook of our own."""
    text = f"# {path.name[:2]} · Small\n\n**Small?**\n\nAfter this notebook you can\n\n- do this;\n- and\n  that."
    first, last = nbformat.v4.new_markdown_cell(text), nbformat.v4.new_markdown_cell("The end.")
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, code), last])
    nb.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nb.metadata["course"] = {"alone": alone}
    notebooks.write(path, nb)
    return path
