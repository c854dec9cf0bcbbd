"""The course's machinery, which no notebook and no helper imports; ``python -m course --help`` lists its commands.

Read first ``run``, then ``build``:

    notebooks  the notebooks as files, the lines that are generated from them, copies without solutions
    freshness  what a notebook's outputs depend on: a change elsewhere makes nothing stale
    run        the one place that runs notebooks; it keeps executed copies
    kernels    kernels that start warm, for a try of the whole course
    warm       what the process behind them imports
    build      the site of executed copies; storing outputs in the notebooks
    slides     decks that open from disk
    paper      the whole course as a PDF; pictures of pages, to proofread
    first      a first result in seconds
    engines    the atlas: one file in many engines, a row each
    engine_files    the files that it gives them
    engine_openers  how each opens and runs one, for an environment without this course
    findings   the scripts of findings/: which of them still hold
"""

import os

from helpers import settings

WORK = (settings.ROOT if os.access(settings.ROOT, os.W_OK) else settings.EXPORTS) / "_build"  # not kept in git
