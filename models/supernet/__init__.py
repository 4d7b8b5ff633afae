"""Searchable networks: spaces of architectures, and how they are searched. No training loops, no files."""

from models.supernet.autoformer import autoformer_supernet
from models.supernet.exits import SearchableExits
from models.supernet.searching import Divisible, Observant, chosen, searchable
from models.supernet.space import Architecture, Searchable, Space, TransformerSpace

__all__ = [
    "Architecture",
    "Divisible",
    "Observant",
    "Searchable",
    "SearchableExits",
    "Space",
    "TransformerSpace",
    "autoformer_supernet",
    "chosen",
    "searchable",
]
