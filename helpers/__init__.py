"""The few functions that the notebooks share: each is built by hand in a notebook first, then imported from here."""
