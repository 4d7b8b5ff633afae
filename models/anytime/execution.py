"""Networks with several exits, and their real early exit: samples that are done leave the batch."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from models.anytime.policy import Policy
from models.compute import executed_by_parts, inference, without_data
from models.mistakes import Mistake

# Moving all images that stay costs a few percent of computing the layers up to the next exit for them (measured with
# `benchmarks.adaptive`), so a batch is made smaller as soon as that many leave.
MIN_LEAVING = 0.05


@runtime_checkable
class MultiExit(Protocol):
    """A network that can be stopped at several exits.

    Its `forward` returns the logits of all exits, cheapest first, as calling `advance` for each of them does. `state`
    is a tree (tuples, lists, dicts) of tensors whose first axis is the batch: finished samples leave by indexing every
    tensor in it. A network may use up the state that it is given.
    """

    num_exits: int

    def start(self, images: Tensor) -> Any:
        """Images [B, C, H, W] to the state before the first exit."""

    def advance(self, exit: int, state: Any) -> tuple[Tensor, Any]:
        """The state before an exit to its logits [b, K] and the state before the next; runs no more than that needs."""


def iterate(network: MultiExit, images: Tensor) -> Iterator[Tensor]:
    """Runs a network exit by exit, for all images; what an exit needs runs when it is asked for.

    Args:
        network: A network with exits, in any mode.
        images: [B, C, H, W].

    Yields:
        What each exit returns, cheapest first.
    """
    state = network.start(images)
    for exit in range(network.num_exits):
        output, state = network.advance(exit, state)
        yield output


def each_exit(network: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """As `iterate`, for any network: one without `MultiExit` runs at once.

    Args:
        network: Images to what an exit returns, or to a list of that; or a `MultiExit`.
        images: [B, C, H, W].
    """
    if isinstance(network, MultiExit):
        yield from iterate(network, images)
    else:
        output = network(images)
        yield from output if isinstance(output, (list, tuple)) else [output]


@torch.no_grad()
def run(network: MultiExit, images: Tensor, policy: Policy, min_leaving: float = MIN_LEAVING) -> tuple[Tensor, Tensor]:
    """Classifies images, each by the first exit that is sure enough of it.

    What follows an exit is computed for the images that did not leave there. The results are those of running every
    exit for every image and choosing afterwards, up to float noise. The network waits once per exit for the device.

    Args:
        network: A network with exits, in evaluation mode.
        images: [B, C, H, W].
        policy: When images leave.
        min_leaving: Share of the batch that has to be done before it is made smaller: moving the others costs time too.

    Returns:
        Logits [B, K] of the exit taken by each image, and these exits [B].

    Raises:
        Mistake: A policy for another number of exits, a network in training mode, or a share outside of [0, 1].
    """
    policy.check(network.num_exits)
    if not 0 <= min_leaving <= 1:
        raise Mistake(f"min_leaving={min_leaving} must be a share of the batch, from 0 to 1")
    if getattr(network, "training", False):
        raise Mistake("images leave the batch in evaluation mode only: call network.eval() first")
    state = network.start(images)
    rows = torch.arange(len(images), device=images.device)
    exits = torch.zeros_like(rows)
    results: Tensor | None = None
    # Rows of the state whose image has left but that are still carried along; None for no such row.
    done: Tensor | None = None
    for exit in range(network.num_exits):
        logits, state = network.advance(exit, state)
        if results is None:
            results = logits.clone()
        elif done is None:
            results[rows], exits[rows] = logits, exit
        else:
            results[rows] = torch.where(done[:, None], results[rows], logits)
            exits[rows] = torch.where(done, exits[rows], exit)
        if exit + 1 == network.num_exits:
            break
        leaves = policy.leaves(exit, logits)
        done = leaves if done is None else leaves | done
        kept = (~done).nonzero().squeeze(1)
        if not len(kept):
            break
        if len(kept) == len(rows):
            done = None
        elif len(rows) - len(kept) >= min_leaving * len(rows):
            state = compact(state, kept)
            rows, done = rows[kept], None
    assert results is not None
    return results, exits


def compact(state: Any, kept: Tensor) -> Any:
    """The state of some samples only.

    Args:
        state: Tree of tensors [b, ...].
        kept: int64 [k], rows that stay.

    Returns:
        Tree of tensors [k, ...].
    """
    return tree_map(lambda tensor: tensor.index_select(0, kept), state)


def exit_costs(network: MultiExit, image_size: Sequence[int]) -> list[float]:
    """Multiply-adds up to each exit, everything that has run by then included.

    Counted in one inference on tensors that have no data, with the rules of `models.compute.count`.

    Args:
        network: An `nn.Module`; it is left in its mode and on its device.
        image_size: Channels, height, width of an image.

    Returns:
        One number for each exit, cheapest first.
    """
    assert isinstance(network, nn.Module)
    with without_data(network, image_size) as images, inference(network):
        return [macs for _, macs in executed_by_parts(iterate(network, images), 1)]
