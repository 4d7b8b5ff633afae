"""Searchable networks: spaces of architectures, and how they are searched. No training loops, no files."""

from models.supernet.autoformer import autoformer_supernet
from models.supernet.space import Architecture, Searchable, Space, TransformerSpace

__all__ = ["Architecture", "Searchable", "Space", "TransformerSpace", "autoformer_supernet"]
