"""What `search` does: candidates and their cache, limits, a table of latencies, the front, what is written."""
