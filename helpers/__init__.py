"""What the notebooks share: each part is built by hand in the notebook that its module names, then imported from here.

Read first, in this order; these nine are the base that every lesson stands on:

    settings     where things are, and the choices that hold for all notebooks
    machine      versions, processor, memory, accelerator
    models       the networks and their weights
    photos       opening what people really have
    images       making it the network's input
    labels       class names, English and Chinese
    plots        how pictures look
    graph        what is in an .onnx file
    precision    do two backends give the same answer?

Measuring speed and memory, from 04 on:

    article      the article's own tables, and how exact they are
    engines      a network that is loaded, its input bound, in whatever engine
    timing       how long one run takes, and whether the number can be trusted
    memory       how much memory a row needs
    sweep        every column at every shape, each finished row kept
    results      the files of results: written, checked, collected from many machines
    speed_plots  a speed table, wide and in pictures
    claims       the article's claims, each judged by code

Beyond the article:

    roofline     how fast could it be?
    webpage      a network in a web page
    chromium     a browser without a window
    errors       what a message means: the table, and the search over it

Not for lessons, and behind the commands that ``python -m course --help`` lists:

    course       what runs, stores, renders and prints the notebooks
"""
