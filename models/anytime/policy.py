"""When a sample leaves: a criterion of confidence and a threshold for each exit."""

from dataclasses import dataclass

from torch import Tensor

from models.anytime.confidence import check_criterion, confidence
from models.mistakes import Mistake

# No confidence reaches the one, and every confidence the other.
NEVER, ALWAYS = 1e8, -1e8


@dataclass(frozen=True)
class Policy:
    """A sample leaves at the first exit whose confidence is at least the exit's threshold, else at the last one.

    Args:
        criterion: How sure an exit is (see `models.anytime.CRITERIA`).
        thresholds: One for each exit, cheapest first; `NEVER` (1e8) where nobody leaves. The last one has no effect.

    Raises:
        Mistake: No such criterion, no threshold, or one that is not a number.
    """

    criterion: str
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        if not self.thresholds or any(threshold != threshold for threshold in self.thresholds):
            raise Mistake(f"a policy needs a threshold for each exit, not {self.thresholds}")

    def check(self, num_exits: int) -> None:
        """Refuse a network with another number of exits.

        Raises:
            Mistake: With both numbers.
        """
        if len(self.thresholds) != num_exits:
            raise Mistake(
                f"the policy has {len(self.thresholds)} thresholds, but the network has {num_exits} exits: "
                "it needs one for each"
            )

    def leaves(self, exit: int, logits: Tensor) -> Tensor:
        """Which samples leave at an exit: logits [B, K] to bool [B]."""
        return confidence(logits, self.criterion) >= self.thresholds[exit]
