"""Error messages of today's libraries: find the cause of one that is pasted in.

Taught in notebooks/13_error_lab.ipynb.
"""

import json
import re
from pathlib import Path

import pandas as pd

from helpers import settings

# In this order, as Python and JavaScript both read them: what differs from machine to machine is no part of a message.
IGNORED = (
    (r"\x1b\[[0-9;]*m", ""),  # colours
    *((rf"\bindex: {n}\b", f"index: {axis}") for n, axis in enumerate(("batch", "channels", "height", "width"))),
    (r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\",()]+){2,}", "path"),
    (r"\b\d+(?:\.\d+)*\b", "#"),
    (r"[‘’`]", "'"),
    (r"\s+", " "),
)


def table() -> pd.DataFrame:
    """Return every cause that the course knows: key, words (of the message), cause, tell (it apart), repair."""
    return pd.read_csv(settings.DATA / "errors.csv", keep_default_na=False)


def find(message: str) -> pd.DataFrame:
    """Find the causes that a message can have; numbers, paths and line ends in it are ignored.

    Args:
        message: pasted as it is, the whole traceback if you like.
    Returns:
        Rows of ``table()``: none, the one cause, or the few to tell apart.
    """
    plain, causes = _plain(message), table()
    return causes[[any(_holds(plain, parts) for parts in _parts(words)) for words in causes["words"]]]


def search_box() -> str:
    """Return HTML: a field that searches the table as one types, in the page itself, without a network."""
    rows = [row | {"words": _parts(row["words"])} for row in table().to_dict("records")]
    # "<" as an escape: nothing in the table can end the script
    data = json.dumps({"rows": rows, "ignored": IGNORED}, ensure_ascii=False).replace("<", "\\u003c")
    return Path(__file__).with_suffix(".html").read_text("utf-8").replace("{{ data }}", data)


def _plain(text: str) -> str:
    for pattern, instead in IGNORED:
        text = re.sub(pattern, instead, text)
    return text.lower()


def _parts(words: str) -> list[list[str]]:
    """Return the ways in which a message can be worded, each as the parts that stand in it, in this order."""
    return [[_plain(part).strip() for part in way.split("…")] for way in words.split("|")]


def _holds(plain: str, parts: list[str]) -> bool:
    at = 0
    return all((at := plain.find(part, at) + 1) > 0 for part in parts)
