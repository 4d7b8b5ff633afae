"""What processes that train together have in common."""

import torch
from torch import Tensor, distributed


def process_mean(value: Tensor | float, device: torch.device) -> Tensor:
    """The mean over all processes of what each counted, to divide sums by; of one process its own count.

    The gradients of processes are averaged, so a sum divided by it trains as one process with all samples would. Every
    process must call it equally often, whatever it has; without a gradient.

    Args:
        value: What this process counted, any shape.
        device: Where the sums are.

    Returns:
        float32, of the shape of `value`.
    """
    mean = torch.as_tensor(value, dtype=torch.float32, device=device).detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean
