"""Run the scripts of ``findings/``: does what surprised us still hold? For maintainers, after an upgrade."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from helpers import settings

LIMIT_S = 1800  # an install of PyTorch among them


def hold(names: list[str], *, folder: Path = settings.ROOT / "findings") -> int:
    """Run findings, two at a time, and print which still hold; return 1 if one does not.

    Args:
        names: parts of their names; all if empty.
        folder: where the scripts are.
    Raises:
        ValueError: if no script has such a name.
    """
    scripts = [one for one in sorted(folder.glob("*.sh")) if not names or any(name in one.stem for name in names)]
    if not scripts:
        raise ValueError(f"No script in findings/ has {' or '.join(names)} in its name.")
    print(
        f"{len(scripts)} scripts install packages of their own and remove them: minutes each, and some GB for PyTorch."
    )
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(_holds, scripts))
    return 0 if all(found) else 1


def _holds(script: Path) -> bool:
    process = subprocess.Popen(["bash", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # the script ends with what it runs now, and removes its folder on the way
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        said = f"{process.communicate()[0]}\nstopped after {LIMIT_S} s"
    last = (said.strip().splitlines() or ["said nothing"])[-1]
    print(f"{'holds' if process.returncode == 0 else 'GONE OR FAILED'}  {script.stem}: {last}", flush=True)
    return process.returncode == 0
