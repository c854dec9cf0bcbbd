"""Where things are, and the choices that a reader makes for the whole course, each by an environment variable."""

import contextlib
import os
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS, DATA = ROOT / "notebooks", ROOT / "data"
EXPORTS = ROOT / os.environ.get("COURSE_EXPORTS", "data/exports")  # what the notebooks write; not kept in git
IMAGES, WEIGHTS = DATA / "images", DATA / "weights"  # a reader may put files into both
if not (IMAGES.exists() or os.access(DATA, os.W_OK)):  # a course that may only be read
    IMAGES = EXPORTS / "images"
SEED = 2024
EFFORTS = ("quick", "standard", "full")
LANGUAGES = ("english", "chinese")
WEIGHT_CHOICES = ("auto", "imagenet", "random")
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
    """Return the one of three values that belongs to the effort in force."""
    return {"quick": quick, "standard": standard, "full": full}[effort()]


def label_language() -> str:
    """Language of class names: "english" or "chinese" (environment variable COURSE_LABELS)."""
    return _choice("COURSE_LABELS", LANGUAGES, "english")


def weights_choice() -> str:
    """Which weights to load: "auto", "imagenet" or "random" (environment variable COURSE_WEIGHTS)."""
    return _choice("COURSE_WEIGHTS", WEIGHT_CHOICES, "auto")


def check() -> None:
    """Raise ValueError if one of the environment variables has a value that no notebook would take."""
    effort(), label_language(), weights_choice()


def results_folder() -> Path:
    """Return where measurements are kept: COURSE_RESULTS, else ``data/results``; of quick runs outside git."""
    kept = EXPORTS / "quick-results" if effort() == "quick" else DATA / "results"
    return Path(os.environ.get("COURSE_RESULTS", kept))


def exports_folder(notebook: str) -> Path:
    """Return the folder for a notebook's exported models, ``data/exports/<notebook>``, made if it is not there.

    Raises:
        PermissionError: if nothing can be written there; the message says what to do.
    """
    folder = EXPORTS / notebook
    with contextlib.suppress(OSError):  # what is wrong, the next line says in words
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"Nothing can be written to {folder}, where the course puts its files. Set the environment variable "
            "COURSE_EXPORTS to a folder of your own, before Jupyter starts."
        )
    return folder
