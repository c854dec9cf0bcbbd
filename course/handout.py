"""The notebooks without their solutions: places to fill in, and the cells that check an answer."""

import re
from pathlib import Path

from nbconvert.preprocessors import TagRemovePreprocessor

from course import notebooks


def handout(path: Path, out: Path, *, force: bool = False) -> Path:
    """Copy a notebook without its solutions, and the pictures, to a folder beside ``helpers``; return the copy.

    FileExistsError if the file is there and holds something else, perhaps somebody's answers, unless ``force``.
    """
    nb, _ = TagRemovePreprocessor(remove_cell_tags={"solution"}).preprocess(notebooks.read(path), {})
    for cell in nb.cells:
        if cell.cell_type == "markdown":  # the pages beside the notebooks are not handed out
            cell.source = re.sub(r"\[([^\]]*)\]\(\w+\.md[^)]*\)", r"\1", notebooks.GENERATED.sub("", cell.source))
        cell.metadata.pop("course", None)  # wrong answers, for the tests
    nb.metadata.pop("course", None)  # the stored run's hash is that of the whole notebook
    made = out / path.name
    if made.exists() and not force and notebooks.read(made) != nb:
        raise FileExistsError(
            f"{made} differs from a fresh handout. It may hold answers, which would be lost: move it away first, or "
            "overwrite it with --force."
        )
    notebooks.copy_figures(out)
    notebooks.write(made, nb)
    return made
