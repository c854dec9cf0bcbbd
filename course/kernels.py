"""Kernels that start warm: copies of one process that has imported what the notebooks import. Systems with fork only.

For tries, never for measuring: a copy's threads and memory are not those of a fresh process.
"""

import os
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running, set_forkserver_preload
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner


def start(cores: Collection[int], log: Path) -> None:
    """Begin to import, in another process on these cores; from now on kernels are copies of it."""
    ours, stderr = os.sched_getaffinity(0), os.dup(2)
    with log.open("a") as file:
        os.dup2(file.fileno(), 2)  # what libraries say while they are imported
    os.sched_setaffinity(0, cores)  # libraries ask once how many threads they may have
    set_forkserver_preload(["course.warm"])
    ensure_running()
    os.sched_setaffinity(0, ours)
    os.dup2(stderr, 2)
    os.close(stderr)
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["warm"] = EntryPoint("warm", f"{__name__}:WarmProvisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = "warm"


class Kernel(ForkServerProcess):
    """A kernel's process, asked as ``subprocess.Popen`` is."""

    stdin = stdout = stderr = None  # no pipes to close

    def __init__(self, arguments: list[str], folder: str, environment: dict[str, str], log: str) -> None:
        """Take the arguments after the program's name, the working folder, the environment and stderr's file."""
        super().__init__()
        self.arguments, self.folder, self.environment, self.log = arguments, folder, environment, log
        self.cores = os.sched_getaffinity(0)  # those of the thread that asks

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.exitcode

    def wait(self) -> int | None:
        """Wait for its end and return the exit code."""
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid or 0, number)

    def run(self) -> None:
        """Become the kernel, as ``python -m ipykernel_launcher`` in that folder and environment would."""
        from ipykernel.kernelapp import IPKernelApp

        os.setsid()  # a group of its own, which can be ended whole
        os.sched_setaffinity(0, self.cores)
        os.dup2(os.open(self.log, os.O_WRONLY | os.O_APPEND), 2)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.path[:] = [place for place in sys.path if place not in ("", str(Path(__file__).parents[1]))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("course", "helpers", "__mp_main__")]:
            del sys.modules[name]
        app = IPKernelApp.instance(parent_handle=os.getppid())
        app.initialize(self.arguments)
        app.start()


class WarmProvisioner(LocalProvisioner):
    """How Jupyter starts such a kernel."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start it, with the arguments that follow the program's name."""
        kernel = Kernel(cmd[cmd.index("-f") :], str(kwargs["cwd"]), kwargs["env"], kwargs["stderr"].name)
        kernel.start()
        self.process = kernel  # type: ignore[assignment]  # it answers as a Popen
        self.pid, self.pgid, self.cwd = kernel.pid, kernel.pid, kwargs["cwd"]
        return self.connection_info
