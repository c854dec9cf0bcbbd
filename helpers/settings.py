"""Where things are, and the choices that a reader can make for the whole course.

Each choice is an environment variable, so that one command can set it for every notebook; inside a notebook the
settings cell shows the value in use, and you can type another one there.
"""

import os
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
IMAGES = DATA / "images"
WEIGHTS = DATA / "weights"
EXPORTS = DATA / "exports"  # .onnx files that the notebooks write; not kept in git

SEED = 2024

EFFORTS = ("quick", "standard", "full")
LANGUAGES = ("english", "chinese")
WEIGHT_CHOICES = ("auto", "imagenet", "stand-in")

T = TypeVar("T")


def _choice(variable: str, allowed: tuple[str, ...], default: str) -> str:
    value = os.environ.get(variable, default)
    if value not in allowed:
        raise ValueError(f"The environment variable {variable} is {value!r}; it must be one of {', '.join(allowed)}.")
    return value


def effort() -> str:
    """How much work the notebooks do: "quick", "standard" or "full" (environment variable COURSE_EFFORT)."""
    return _choice("COURSE_EFFORT", EFFORTS, "standard")


def by_effort(*, quick: T, standard: T, full: T) -> T:
    """Return the value that belongs to the effort in force."""
    return {"quick": quick, "standard": standard, "full": full}[effort()]


def label_language() -> str:
    """Language of class names: "english" or "chinese" (environment variable COURSE_LABELS)."""
    return _choice("COURSE_LABELS", LANGUAGES, "english")


def weights_choice() -> str:
    """Which weights to load: "auto", "imagenet" or "stand-in" (environment variable COURSE_WEIGHTS)."""
    return _choice("COURSE_WEIGHTS", WEIGHT_CHOICES, "auto")


def check() -> None:
    """Raise ValueError if one of the environment variables has a value that no notebook would take."""
    effort(), label_language(), weights_choice()


def results_folder() -> Path:
    """Return where measurements are kept: ``data/results``, and for "quick", which only tries the cells, outside git.

    The environment variable COURSE_RESULTS names another folder.
    """
    if "COURSE_RESULTS" in os.environ:
        return Path(os.environ["COURSE_RESULTS"])
    return by_effort(quick=EXPORTS / "quick-results", standard=DATA / "results", full=DATA / "results")


def exports_folder(notebook: str) -> Path:
    """Return the folder for a notebook's exported models, ``data/exports/<notebook>``, made if it is not there."""
    folder = EXPORTS / notebook
    folder.mkdir(parents=True, exist_ok=True)
    return folder
