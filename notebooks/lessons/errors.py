"""Error messages of today's libraries: find the cause of one that is pasted in.

Taught in notebooks/13_error_lab.ipynb.
"""

import html
import json
import re

import pandas as pd

from helpers import settings

TABLE = settings.DATA / "errors.csv"
AXES = ("batch", "channels", "height", "width")
# In this order; what a message names differs from machine to machine, and is no part of its kind.
IGNORED = (
    (r"\x1b\[[0-9;]*m", ""),  # colours
    *((rf"\bindex: {number}\b", f"index: {axis}") for number, axis in enumerate(AXES)),  # this number says it all
    (r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\",()]+){2,}", "path"),
    (r"\b\d+(?:\.\d+)*\b", "#"),
    (r"[‘’`]", "'"),
    (r"\s+", " "),
)


def table() -> pd.DataFrame:
    """Return every cause that the course knows: key, words (of the message), cause, tell (it apart), repair."""
    return pd.read_csv(TABLE, keep_default_na=False)


def find(message: str) -> pd.DataFrame:
    """Find the causes that a message can have; numbers, paths and line ends in it are ignored.

    Args:
        message: pasted as it is, the whole traceback if you like.
    Returns:
        Rows of ``table()``: none, the one cause, or the few to tell apart.
    """
    plain, causes = _plain(message), table()
    return causes[[any(_holds(plain, words) for words in row.split("|")) for row in causes["words"]]]


def _plain(text: str) -> str:
    for pattern, instead in IGNORED:
        text = re.sub(pattern, instead, text)
    return text.lower()


def _holds(plain: str, words: str) -> bool:
    """Return whether the parts of ``words``, joined by "…", stand in the text, in this order."""
    at = 0
    for part in words.split("…"):
        found = plain.find(_plain(part).strip(), at)
        if found < 0:
            return False
        at = found + 1
    return True


def search_box() -> str:
    """Return HTML: a field that searches the table as one types, in the page itself, without a network."""
    rows = table().to_dict("records")
    for row in rows:
        row["words"] = [[_plain(part).strip() for part in words.split("…")] for words in row["words"].split("|")]
    # "<" as an escape: nothing in the table can end the script
    data = json.dumps({"rows": rows, "axes": AXES}, ensure_ascii=False).replace("<", "\\u003c")
    hint = html.escape("Paste an error message here")
    return f"""<div class="error-search"><textarea rows="4" style="width: 100%" aria-label="{hint}"
placeholder="{hint}"></textarea><div aria-live="polite"></div></div>
<script>
(() => {{
  const {{rows, axes}} = {data};
  const box = [...document.querySelectorAll(".error-search")].at(-1);
  const [field, answer] = box.children;
  const index = n => new RegExp(`\\\\bindex: ${{n}}\\\\b`, "g");
  const plain = text => axes.reduce((text, axis, n) => text.replace(index(n), `index: ${{axis}}`),
      text.replace(/\\x1b\\[[0-9;]*m/g, "")).replace(/(?:[A-Za-z]:)?(?:[\\\\/][^\\s\\\\/:'",()]+){{2,}}/g, "path")
      .replace(/\\b\\d+(?:\\.\\d+)*\\b/g, "#").replace(/[‘’`]/g, "'").replace(/\\s+/g, " ").toLowerCase();
  const holds = (text, parts) => {{
    let at = 0;
    return parts.every(part => {{ const found = text.indexOf(part, at); at = found + 1; return found >= 0; }});
  }};
  field.addEventListener("input", () => {{
    const text = plain(field.value);
    const found = field.value.trim() ? rows.filter(row => row.words.some(parts => holds(text, parts))) : [];
    answer.replaceChildren(...found.map(row => {{
      const entry = document.createElement("p");
      entry.textContent = `${{row.cause}}.${{row.tell ? " To tell: " + row.tell + "." : ""}} Repair: ${{row.repair}}`;
      return entry;
    }}));
    if (field.value.trim() && !found.length) answer.textContent = "Not in the table: search for the last line.";
  }});
}})();
</script>"""
