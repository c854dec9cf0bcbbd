"""The course's machinery, which no notebook and no helper imports; ``python -m course --help`` lists its commands.

Read first ``run``, then ``build``:

    notebooks  the notebooks as files, and the lines that are generated from them
    freshness  what a notebook's outputs depend on: a change elsewhere makes nothing stale
    run        the one place that runs notebooks; it keeps executed copies
    kernels    kernels that start warm, for a try of the whole course
    warm       what the process behind them imports
    build      the site of executed copies; storing outputs in the notebooks
    slides     decks that open from disk
    handout    copies without solutions
    pdf        the whole course as a PDF
    pictures   pictures of pages and plots, to proofread
    first      a first result in seconds
"""
