"""The course's own machinery: runs, stores, renders, prints the notebooks; no notebook and no other helper imports it."""
