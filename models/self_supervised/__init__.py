"""Students and teachers without labels: heads, losses, queue and centre, and the learners made of them."""

from models.self_supervised.byol import BYOL
from models.self_supervised.dino import DINO
from models.self_supervised.encoder import DINOHead, Encoder, mlp_head
from models.self_supervised.learner import Learner
from models.self_supervised.moco import MoCo
from models.self_supervised.pixels import Pixels

__all__ = ["BYOL", "DINO", "DINOHead", "Encoder", "Learner", "MoCo", "Pixels", "mlp_head"]
