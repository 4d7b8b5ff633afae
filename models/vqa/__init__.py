"""Networks that answer questions about images."""

from models.vqa.from_images import BackboneCells, FromImages, Patches
from models.vqa.losses import answer_loss
from models.vqa.referring import Located, Referring, referring_losses
from models.vqa.trar import TRAR

__all__ = [
    "TRAR",
    "BackboneCells",
    "FromImages",
    "Located",
    "Patches",
    "Referring",
    "answer_loss",
    "referring_losses",
]
