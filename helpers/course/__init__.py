"""The course's machinery: runs, stores, renders, prints the notebooks; no notebook and no other helper imports it."""
