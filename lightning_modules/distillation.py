"""Distillation: a task's network learns from a teacher, too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from lightning_modules.internals import Clock
from lightning_modules.optimization import MakeOptimizer, Part
from lightning_modules.schedules import Constant, Schedule
from lightning_modules.teacher_cache import TeacherCache
from models.compute import inference
from models.distillation import Seen, Term
from models.distillation.seen import Watch
from models.mistakes import Mistake
from models.pixels import Conversion, Stated, pixels_of

if TYPE_CHECKING:
    from lightning_modules.task import Task

# What a task calls it, and where a checkpoint keeps what is not of the student.
NAME = "distillation"
# Whose weights no checkpoint has: they come from their file each time.
TEACHER = f"{NAME}.teacher"
# Sides of images that those of detectors are cut to: networks that pad to multiples of 2 to 128 pad them differently.
ODD = (129, 65, 33, 17)
# Options of a task that only a training needs.
OF_TRAINING = (NAME,)


class Distillation(nn.Module):
    """Adds to the losses of any task what its network and a teacher make of the same images.

    It is the option `distillation` of every task. The teacher is evaluated once a batch, without gradient, on what the
    network is given, with the pixels that its weights expect. It is in no optimiser and no checkpoint: its weights come
    from `--weights.distillation.teacher`, a run, a converted file or a package, at the start and whenever a training
    goes on, which is refused with those of another. A checkpoint's network is the student alone: it is evaluated,
    predicts and is trained further without any of this.

    Args:
        teacher: a network that takes what the student takes.
        terms: losses by name, logged as `loss_distil_NAME`; see `models.distillation`.
        task_weight: what the task's own losses are multiplied by.
        inherit: parts of the network that begin as the teacher's, such as `neck`: what has the same name and shape is
            copied before the first step.
        optimizer: of the parameters of the terms, where they have some.
        schedule: their learning rate per optimiser step; `None` keeps it constant.
        clip: largest norm of their gradient.
        cache: GiB of each process' device for what the teacher makes of all training images. It is run on them once,
            before the first step, and no more; they have to be the same in every epoch.

    Raises:
        Mistake: neither a term nor anything to inherit, a weight below 0, nothing to inherit under a name, or a cache
            for images that differ from epoch to epoch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        terms: dict[str, Term] | None = None,
        task_weight: float = 1.0,
        inherit: Sequence[str] = (),
        optimizer: MakeOptimizer = torch.optim.AdamW,
        schedule: Schedule | None = None,
        clip: float | None = None,
        cache: float | None = None,
    ) -> None:
        super().__init__()
        if not terms and not inherit:
            raise Mistake("distillation: give it a term, such as models.distillation.Logits, or something to inherit")
        if task_weight < 0:
            raise Mistake(f"distillation: task_weight is 0 or more, not {task_weight:g}")
        if cache is not None and cache <= 0:
            raise Mistake(f"distillation: cache is GiB, more than 0, not {cache:g}")
        self.teacher = teacher.requires_grad_(False).eval()
        self.terms = nn.ModuleDict(terms or {})
        self.task_weight, self.inherit = task_weight, list(inherit)
        self.optimizer, self.schedule, self.clip = optimizer, schedule or Constant(), clip
        self.cache = cache
        self._kept: TeacherCache | None = None
        # Of the batch in a training step, where its images are in the training split.
        self.index: Tensor | None = None
        # What the teacher's weights say of the images that they expect; None: the student's.
        self.teacher_pixels: Stated | None = next(iter(pixels_of(teacher).values()), None)
        self._conversion: Conversion | None = None
        self.register_buffer("factor", None, persistent=False)
        self.register_buffer("offset", None, persistent=False)
        self._digest: str | None = None
        self._student: Watch | None = None
        self._teacher: Watch | None = None
        self._taught: Seen | None = None
        self._found: dict[Term, Tensor | Mapping[str, Tensor]] = {}

    @override
    def train(self, mode: bool = True) -> Distillation:
        """Puts the terms into a mode; the teacher stays in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def adopt_pixels(self, pixels: Stated | None) -> None:
        """Notes what the teacher's weights say of the images that they expect."""
        self.teacher_pixels = pixels

    def part(self) -> dict[str, Part]:
        """What is trained of it, as a part of a task; nothing where no term has parameters."""
        if not any(parameter.requires_grad for parameter in self.terms.parameters()):
            return {}
        return {NAME: Part(self.terms, self.optimizer, self.schedule, clip=self.clip)}

    # The life of a training.

    def attach(self, task: Task, data: Any) -> None:
        """Watches both networks, lets every term look at an example, and adds the terms to a task's penalties; once.

        Args:
            task: that learns.
            data: its data module.

        Raises:
            Mistake: a layer that is not there, or features that cannot be compared.
        """
        if self._student is not None:
            return
        if self.cache is not None:
            if task.alters_images is not None:
                raise Mistake(f"distillation.cache: no image is seen twice with {task.alters_images}; leave cache out")
            try:
                data.undrawn_train_dataloader()
            except ValueError as error:
                raise Mistake(f"distillation.cache: {error}; leave cache out") from None
        terms: dict[str, Term] = dict(self.terms.items())  # type: ignore[arg-type]
        self._student = Watch(task.network, [name for each in terms.values() for name in each.student_layers])
        self._teacher = Watch(self.teacher, [name for each in terms.values() for name in each.teacher_layers])
        inputs = task.inputs(data.example(2))
        # Networks may pad the same sizes alike and others not.
        if (odd := _of_odd_sizes(inputs)) is not None:
            self._prepare(terms, task.network, odd)
        self._prepare(terms, task.network, inputs)
        annotated = getattr(data, "annotated_objects", None)
        objects = tuple(map(torch.from_numpy, annotated("train"))) if annotated is not None else None
        for name, term in terms.items():
            if objects is not None:
                term.learn(*objects)
            for part in term.names or ("",):
                task.penalties[f"distil_{name}_{part}".rstrip("_")] = partial(self._loss, term, part, task)
        self._student.training_only = True
        self._student.seen = self._taught = None

    def _prepare(self, terms: Mapping[str, Term], network: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Lets every term look at what both networks make of an example."""
        assert self._student is not None
        with inference(network):
            network(*inputs)
        student = self._student.seen
        assert student is not None
        teacher = self.teach(student.inputs)
        for name, term in terms.items():
            try:
                term.prepare(student, teacher)
            except Mistake as error:
                raise Mistake(f"distillation.terms.{name}: {error}") from None

    def begin(self, task: Task, afresh: bool) -> None:
        """Notes how the teacher's pixels differ from the data's, and gives the network what it inherits.

        Args:
            task: that learns, on its device.
            afresh: whether the training starts afresh, so that something is inherited.

        Raises:
            Mistake: the teacher has nothing that could be inherited.
        """
        pixels = getattr(task.data, "pixels", None)
        if self.teacher_pixels is not None and pixels is not None:
            self._conversion = Conversion.between(pixels.plain(), self.teacher_pixels)
        if self._conversion is not None:
            self.factor, self.offset = (
                torch.tensor(each, device=task.device)[:, None, None]
                for each in (self._conversion.factor, self._conversion.offset)
            )
        if self.cache is not None:
            self._kept = TeacherCache(self.teach, self.cache)
            self._kept.fill(task, task.data)
        if not afresh:
            return
        own, theirs = task.network.state_dict(), self.teacher.state_dict()
        for part in self.inherit:
            shared = [
                name
                for name in own
                if f"{name}.".startswith(f"{part}.") and name in theirs and theirs[name].shape == own[name].shape
            ]
            if not shared:
                raise Mistake(
                    f"distillation.inherit: under '{part}' the teacher has no weights of the names and shapes of the "
                    "student's"
                )
            for name in shared:
                own[name].copy_(theirs[name])

    def observed(self) -> dict[str, Tensor]:
        """What the terms say of the last batch beside their losses, by the name that it is logged under."""
        terms: dict[str, Term] = dict(self.terms.items())  # type: ignore[arg-type]
        return {f"distil_{name}_{key}": value for name, term in terms.items() for key, value in term.observed.items()}

    def _loss(self, term: Term, part: str, task: Task) -> Tensor:
        """A loss of a term, which is asked once a batch for all of them."""
        seen = self._student.seen if self._student is not None else None
        if seen is None:
            raise Mistake("distillation: the task has not run its network in this step")
        if self._taught is None or self._taught.inputs is not seen.inputs:
            self._taught, self._found = self._of(seen.inputs), {}
        if term not in self._found:
            clock = Clock(task.trainer)
            term.step, term.total_steps = clock.step, clock.total_steps or 0
            self._found[term] = term(seen, self._taught)
        found = self._found[term]
        loss = found.get(part) if isinstance(found, Mapping) else found
        return term.weight * loss if loss is not None else torch.zeros((), device=task.device)

    def _of(self, inputs: tuple[Any, ...]) -> Seen:
        """What the teacher makes of a training step's images, made now or kept."""
        if self._kept is None:
            return self.teach(inputs)
        assert self.index is not None
        return self._kept(self.index, inputs)

    @torch.no_grad()
    def teach(self, inputs: tuple[Any, ...]) -> Seen:
        """What the teacher makes of what the student is given, once it is attached.

        Args:
            inputs: of the student; the first is the images, in its pixels.
        """
        assert self._teacher is not None
        self.teacher(tree_map_only(Tensor, self._as_the_teacher_sees, inputs[0]))
        seen = self._teacher.seen
        assert seen is not None
        return Seen(inputs, seen.output, seen.features)

    def _as_the_teacher_sees(self, images: Tensor) -> Tensor:
        if self._conversion is None:
            return images
        ordered = images.flip(-3) if self._conversion.flips else images
        return ordered * self.factor + self.offset

    # What a checkpoint has of it.

    def put_aside(self, checkpoint: dict[str, Any]) -> None:
        """Takes what is not of the student out of a checkpoint's weights, and keeps the terms apart."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith(f"{NAME}.")]:
            del state[name]
        checkpoint[NAME] = {"terms": self.terms.state_dict(), "teacher": self.digest()}

    def take_back(self, checkpoint: dict[str, Any]) -> None:
        """Puts what was kept apart back among a checkpoint's weights, to go on with them.

        Raises:
            Mistake: the checkpoint was made with another teacher.
        """
        kept = checkpoint.get(NAME) or {"terms": self.terms.state_dict(), "teacher": self.digest()}
        if kept["teacher"] != self.digest():
            raise Mistake(
                "the checkpoint was made with another teacher: give --weights.distillation.teacher the weights that "
                "the training began with, or start a new training from the checkpoint by --weights"
            )
        state = checkpoint["state_dict"]
        state |= {f"{NAME}.terms.{name}": value for name, value in kept["terms"].items()}
        state |= {f"{TEACHER}.{name}": value for name, value in self.teacher.state_dict().items()}

    def digest(self) -> str:
        """What tells the weights of this teacher from those of another."""
        if self._digest is not None:
            return self._digest
        found = hashlib.sha256()
        for name, value in self.teacher.state_dict().items():
            found.update(f"{name}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        # It never changes.
        self._digest = found.hexdigest()[:16]
        return self._digest


def _of_odd_sizes(inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What a detector takes, its images cut so that networks of other divisors pad them otherwise; None of others."""
    images, *rest = inputs
    if isinstance(images, Tensor):
        return None
    smallest = min(min(each.shape[-2:]) for each in images)
    side = next((odd for odd in ODD if odd <= smallest), None)
    return None if side is None else ([each[..., :side, :side] for each in images], *rest)
