"""What is left of a trained network without some of its channels, for other runs to start from."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import override

from callbacks.reports.report import Report
from callbacks.whole_files import whole, write_whole
from models.compute import count
from models.mistakes import Mistake
from models.pixels import pixels_of
from models.pruning.branches import by_scale, check_branches, scales_of
from models.pruning.costs import Costs, first_images
from models.pruning.norm_channels import slimming_plan, widths_of
from models.pruning.plan import Plan
from models.pruning.planning import Choice, plan_by_share, plan_to_budget
from models.pruning.readers import METHODS, Readers
from models.pruning.removal import remove
from models.pruning.scores import score_by
from models.pruning.soundness import prunable_groups

# Of training images, that `thinet` and `lasso` look at.
BATCHES = 8


class PrunedNetwork(Report):
    """At the end of a training, writes the smaller network beside it; the run itself stays as it is.

    `<name>.json` is the plan, of which `models.classifiers.pruned` builds the architecture, and `<name>.safetensors`
    the weights that are left. For a network that can be built with any widths, such as `models.classifiers.VGG`,
    `<name>_widths.json` holds these, and where layers keep different shares `<name>_uniform.json` those of as many
    multiply-adds with the same share of each.

    Args:
        share: share of the channels that goes, or with `branches` of the branches.
        criterion: `l1`, `l2`, `batch_norm_scale`, `random`: the same share of each layer; `thinet`, `lasso`: that
            by what the next layers make of training images, and these layers are rebuilt; `slimming`: the channels of
            smallest scale of all norms at once, as published ("Network Slimming", arXiv 1708.06519); `branches`: the
            residual branches of smallest scale, by default those at zero, see `StructureSelection`.
        name: what its files are called.
        seed: of `random`, and of the places that `thinet` and `lasso` look at.
        budget: instead of a share, that of the multiply-adds that is left; not with `slimming` or `branches`.
    """

    of_training = True
    in_every_run = False
    every_seconds = math.inf
    # `python -m exp prune` leaves it out of the trainings that follow.
    prepares_pruning = True

    def __init__(
        self,
        share: float | None = None,
        criterion: Literal["l1", "l2", "batch_norm_scale", "random", "thinet", "lasso", "slimming", "branches"] = "l1",
        name: str = "pruned",
        seed: int = 0,
        budget: float | None = None,
    ) -> None:
        if budget is not None and (share is not None or criterion in ("slimming", "branches")):
            raise Mistake(
                "PrunedNetwork: a budget takes the place of a share, and goes with neither slimming nor branches"
            )
        if share is None and budget is None and criterion != "branches":
            raise Mistake(f"PrunedNetwork: {criterion} needs a share of the channels that goes, between 0 and 1")
        if share is not None and not 0 < share < 1:
            raise Mistake(f"PrunedNetwork: share lies between 0 and 1, not {share:g}")
        self.share, self.criterion, self.name, self.seed, self.budget = share, criterion, name, seed, budget
        self._readers: Readers | None = None
        gone = "what is at zero" if share is None else f"{share:.0%}"
        left = (
            f"what is left without {gone}" if budget is None else f"what is left at {budget:.0%} of the multiply-adds"
        )
        self.files = {  # type: ignore[misc]
            f"{name}.json": f"{left}, by {criterion}",
            f"{name}.safetensors": "the weights that are left",
        }

    @override
    def write(self, folder: Path) -> None:
        network = copy.deepcopy(self.task.network).cpu().eval()
        inputs = tuple(each.cpu() for each in self.task.inputs(self.task.data.example(2)))
        plan = self._plan(network, inputs)
        small = copy.deepcopy(network)
        remove(small, plan)
        if self._readers is not None:
            self._readers.rebuild(small, plan, self.criterion)  # type: ignore[arg-type]
        write_whole(folder / f"{self.name}.json", json.dumps(plan.as_dict(), indent=1) + "\n")
        with whole(folder / f"{self.name}.safetensors") as partial:
            # As `python -m exp convert` writes them: with how images look to the weights that training began with.
            stated = pixels_of(network).get("")
            metadata = {"format": "pt"} | ({"pixels": json.dumps(stated)} if stated else {})
            save_file({key: value.contiguous() for key, value in small.state_dict().items()}, partial, metadata)
        if not hasattr(network, "norm_channels") or self.criterion == "branches":
            return
        write_whole(folder / f"{self.name}_widths.json", json.dumps(widths_of(small)) + "\n")
        if self.criterion == "slimming":
            budget = count(small, inputs=inputs).macs / count(network, inputs=inputs).macs
            uniform = copy.deepcopy(network)
            remove(uniform, self._uniform(network, inputs, budget))
            write_whole(folder / f"{self.name}_uniform.json", json.dumps(widths_of(uniform)) + "\n")

    def _plan(self, network: nn.Module, inputs: tuple[Any, ...]) -> Plan:
        if self.criterion == "branches":
            return self._without_branches(network, inputs)
        if self.criterion == "slimming":
            assert self.share is not None
            return slimming_plan(network, self.share)
        groups, _ = prunable_groups(network, first_images(inputs))
        if self.criterion in METHODS:
            self._readers = Readers(network, self._images(), groups, self.seed)
            score = self._readers.score(self.criterion)
        else:
            score = score_by(self.criterion, self.seed)
        scores = {group.name: score(network, group) for group in groups}
        why = {"criterion": self.criterion}
        if self.budget is not None:
            costs = Costs(network, inputs, groups)
            return plan_to_budget(network, groups, scores, self.budget, "macs", costs, Choice(), why)
        assert self.share is not None
        return plan_by_share(network, groups, scores, self.share, Choice(), why)

    def _images(self) -> Iterator[Tensor]:
        """A few batches of training images, as the network takes them."""
        for batch in itertools.islice(self.task.data.train_dataloader(), BATCHES):
            yield self.task.inputs(self.task.data.on_after_batch_transfer(batch, 0))[0]

    def _without_branches(self, network: nn.Module, inputs: tuple[Any, ...]) -> Plan:
        order, scales = by_scale(network), scales_of(network)
        share = self.share
        goes = [name for name in order if not scales[name]] if share is None else order[: int(len(order) * share)]
        gone = [name for name in scales if name in set(goes)]
        check_branches(network, gone, inputs)
        return Plan(type(network).__name__, {}, {"criterion": "branches"}, tuple(gone))

    def _uniform(self, network: nn.Module, inputs: tuple[Any, ...], budget: float) -> Plan:
        groups, _ = prunable_groups(network, first_images(inputs))
        score = score_by("l1")
        scores = {group.name: score(network, group) for group in groups}
        return plan_to_budget(
            network, groups, scores, budget, "macs", Costs(network, inputs, groups), Choice(), {"criterion": "uniform"}
        )
