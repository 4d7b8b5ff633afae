"""Layers: one idea a file."""
