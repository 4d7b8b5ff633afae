"""Pruning: how much filters matter, which are kept, and networks without the others. No training loops."""
