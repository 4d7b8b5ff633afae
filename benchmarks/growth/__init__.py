"""How processor time and memory grow with what there is more of, an axis at a time; see `__main__`."""
