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


def gathered_rows(x: Tensor) -> Tensor:
    """Rows of all processes in the order of the processes; of one process its own. Without a gradient.

    Args:
        x: [B, ...], equally many on every process; every process must call it.

    Returns:
        [processes * B, ...].
    """
    x = x.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def own_rows(x: Tensor) -> Tensor:
    """What of the rows that all processes have alike is this process's part.

    Args:
        x: [processes * B, ...], as `gathered_rows` returned it.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    return x.chunk(distributed.get_world_size())[distributed.get_rank()]
