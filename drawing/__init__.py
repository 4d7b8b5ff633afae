"""Figures from arrays: numpy and matplotlib in, a figure out."""
