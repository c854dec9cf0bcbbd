"""The course's machinery, which no notebook and no learner's module imports; ``python -m course --help`` uses it.

Read first ``run``, then ``build``:

    notebooks  the notebooks as files: their links, their titles, and whether stored outputs are fresh
    run        the one place that runs notebooks; it keeps executed copies
    build      the site of executed copies; storing outputs in the notebooks
    slides     decks that open from disk
    handout    copies without solutions
    book       the whole course as a PDF
    pages      pictures of pages and plots, to proofread
    paddle     one PaddlePaddle network as ONNX, from an environment of its own
"""
