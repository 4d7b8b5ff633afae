"""Networks that answer questions about images."""

from models.vqa.losses import answer_loss
from models.vqa.trar import TRAR

__all__ = ["TRAR", "answer_loss"]
