"""The course's own machinery: it runs, stores, renders and prints the notebooks; no notebook and no other helper imports it."""
