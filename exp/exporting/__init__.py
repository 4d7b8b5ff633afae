"""Networks in files that other programs run: traced, written, compared, run again."""
