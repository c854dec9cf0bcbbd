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
    (r"\bcode:? \(?137\b", "killed for memory"),
    (r"[\\/]+", "/"),
    (r"\b\d+(?:\.\d+)*\b", "#"),
    (r"[‘’`]", "'"),
    (r"\s+", " "),
)
SHOWN = 3  # causes at most; the first is the likeliest
OTHER = "other"  # the kind of a library's general sentences: shown where nothing more special is found


def table() -> pd.DataFrame:
    """Return every cause that the course knows, one row per cause, the more special ones first.

    Its columns: ``key``, ``kind`` (what one was doing), ``words`` (of the message), ``cause``, ``tell`` (it apart),
    ``repair``, ``seen`` (who says so, in which version). In ``words``, ``|`` stands between ways to say it, ``…`` for
    anything, ``*`` for a part of a name.
    """
    return pd.read_csv(settings.DATA / "errors.csv", keep_default_na=False)


def find(message: str) -> pd.DataFrame:
    """Find the causes that a message can have; numbers, folders and line ends in it are ignored.

    Args:
        message: pasted as it is, the whole traceback if you like.
    Returns:
        Rows of ``table()``, none to ``SHOWN``: the likeliest cause, then what it may also be.
    """
    plain, causes = _plain(message), table()
    found = causes[[bool(re.search(_pattern(words), plain)) for words in causes["words"]]]
    special = found[found["kind"] != OTHER]
    found = (found if special.empty else special).head(SHOWN)
    return found.assign(cause=["this may also be: " * (n > 0) + cause for n, cause in enumerate(found["cause"])])


def printed() -> str:
    """Return HTML: the table itself, in the order of its kinds, in a frame that scrolls."""
    rows = table().sort_values("kind", kind="stable").set_index("key")
    rows["message"] = [re.sub(r"\|", " | ", words) for words in rows["words"]]
    body = rows[["kind", "message", "cause", "tell", "repair", "seen"]].to_html()
    return f'<div class="error-table" style="max-height: 30em; overflow: auto">{body}</div>'


def search_box() -> str:
    """Return HTML: a field that searches the table as one types, in the page itself, without a network."""
    rows = [row | {"words": _pattern(row["words"])} for row in table().to_dict("records")]
    held = {"rows": rows, "ignored": IGNORED, "shown": SHOWN, "other": OTHER}
    data = json.dumps(held, ensure_ascii=False).replace("<", "\\u003c")  # nothing in the table can end the script
    return Path(__file__).with_suffix(".html").read_text("utf-8").replace("{{ data }}", data)


def _plain(text: str) -> str:
    for pattern, instead in IGNORED:
        text = re.sub(pattern, instead, text)
    return text.lower()


def _pattern(words: str) -> str:
    """Return a regular expression, as Python and JavaScript both read it, that finds the words in a plain message."""
    ways = (re.escape(_plain(way).strip()) for way in words.split("|"))
    return "|".join(way.replace("…", ".*?").replace(r"\*", r'[^\s"]*') for way in ways)
