"""What two notebooks or more share: each part is built by hand in the notebook that its module names.

The base that every lesson stands on; read it first, in this order:

    settings       where things are, and the choices that hold for all notebooks
    counters       what the system counts: page faults, other programs, a container's limits
    machine        versions, processor, memory, accelerator
    photos         the samples, and opening what people really have; no PyTorch
    preprocessing  making a photo the network's input
    models         the networks and their weights
    checkpoints    weights of your own network, read safely
    export         a file checked at every batch and size that it promises
    labels         class names, English and Chinese
    plots          how pictures look
    graph          what is in an .onnx file, and what was said while it was written
    compare        do two backends give the same answer?
    labelled       photos whose class is known: your folders, Tux Paint's stamps
    accuracy       right answers counted, with intervals; what two files change on the same photos
    engines        a network that is loaded, its input bound, in whatever engine
    timing         how long one run takes, and whether the number can be trusted

Measuring speed and memory over many shapes, in ``helpers.speed``, from notebook 04 on:

    results        rows: declared, written, checked, collected from many machines
    sweep          every column at every shape, each finished row kept
    memory         how much memory a row needs
    plots          a speed table, wide and in pictures
    article        the article's own tables, and how exact they are
    claims         the article's claims, each judged by code

What one notebook alone imports stands in ``notebooks/lessons/``; what runs, stores and prints the notebooks in
``course/``.
"""
