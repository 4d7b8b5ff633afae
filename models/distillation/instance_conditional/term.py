"""Instance-conditional distillation as a term: what the decoder learns, and what the student's maps follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from models.distillation.instance_conditional.decoder import ConditionalDecoder, Looked, ValueProjections
from models.distillation.instance_conditional.instances import (
    BINS,
    FEATURES,
    Described,
    Mlp,
    Prior,
    Slots,
    describe,
    fill,
    num_slots,
)
from models.distillation.instance_conditional.losses import (
    Form,
    Norm,
    auxiliary_losses,
    focus,
    imitation_loss,
    weight_map,
)
from models.distillation.instance_conditional.memory import Memory, Size, finest_stride, sizes_of
from models.distillation.seen import Seen
from models.distillation.term import Term
from models.mistakes import Mistake

# Within what a temperature is learnt.
LEARNT = 0.1, 8.0


class InstanceConditional(Term):
    """A decoder is asked for each annotated object, and for some that are not there, and learns from the teacher's maps
    whether it is and where; where it looked for an object, the student's maps follow the teacher's.

    The decoder learns from the teacher's maps alone, the student from the imitation alone. Both networks take images
    padded alike and return as many maps, of the same strides: those of the neck, or of a detection transformer the
    `encoder_maps`. Nothing of it is left in the student.

    Args:
        num_classes: Labels of the annotations.
        student: Layers of the student that return the maps.
        teacher: Layers of the teacher; the student's by default.
        imitation: What the imitation is multiplied by: 8 for one-stage detectors, 3 for Faster and Mask R-CNN; 0 to
            teach the decoder alone.
        num_heads: Of the decoder.
        num_layers: Of the decoder; 0 is bare attention, as in the MegEngine release.
        project_position: A learned projection of positions before they are added to the keys.
        position_on_values: Add them to the values, too.
        fakes: Objects that are not there for each that is.
        most_slots: Slots of an image, as long as there are not more objects: 300, and 100 for two-stage detectors.
        fixed_slots: So many in each image, instead of `fakes` for each object.
        warm_up: Steps before which the imitation teaches only its own projection, and not the student.
        temperature: What the decoder's logits are divided by before they become weights.
        learn_temperature: Learn it beside the projections, from there on, within 0.1 and 8.
        last_temperature: What it changes to, linearly, until the last step of the training.
        form, norm, per_image, eps: See `imitation_loss`. The MegEngine release has `per_image: false`, `eps: 1.0e-4`.
        with_fakes: Weights from slots without an object, too.
        weight: What both losses of the decoder and the imitation are multiplied by.
    """

    names = ("identification", "localisation", "imitation")

    def __init__(
        self,
        num_classes: int,
        student: Sequence[str] = ("neck",),
        teacher: Sequence[str] | None = None,
        imitation: float = 8.0,
        num_heads: int = 8,
        num_layers: int = 1,
        project_position: bool = True,
        position_on_values: bool = False,
        fakes: float = 5.0,
        most_slots: int = 300,
        fixed_slots: int | None = None,
        warm_up: int = 1000,
        temperature: float = 1.0,
        last_temperature: float | None = None,
        learn_temperature: bool = False,
        form: Form = "mse",
        norm: Norm = "both",
        per_image: bool = True,
        eps: float = 1e-5,
        with_fakes: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight, student, teacher)
        if imitation < 0 or fakes < 0 or not temperature > 0:
            raise Mistake("InstanceConditional: imitation and fakes are 0 or more, and the temperature is positive")
        if learn_temperature and (last_temperature is not None or not imitation):
            raise Mistake(
                "InstanceConditional: a temperature is learnt from the imitation, and follows no schedule then"
            )
        self.num_classes, self.imitation = num_classes, imitation
        self.decoder_options = num_heads, num_layers, project_position, position_on_values
        self.fakes, self.most_slots, self.fixed_slots = fakes, most_slots, fixed_slots
        self.warm_up, self.with_fakes = warm_up, with_fakes
        self.temperature, self.last_temperature = temperature, last_temperature
        self.learnt = nn.Parameter(torch.tensor(float(temperature))) if learn_temperature else None
        self.form, self.norm, self.per_image, self.eps = form, norm, per_image, eps
        self.prior = Prior(num_classes)
        self.decoder: ConditionalDecoder | None = None
        self.projections: ValueProjections | None = None
        self.describer: Mlp | None = None
        self.predictor: Mlp | None = None
        self.stride = 0

    def build(self, width: int, own: int | None = None) -> None:
        """Makes what is trained, for maps of so many channels.

        Args:
            width: Of the teacher's maps.
            own: Of the student's, as many by default.
        """
        self.decoder = ConditionalDecoder(width, *self.decoder_options)
        self.projections = ValueProjections(width, *self.decoder_options, own)
        self.describer = Mlp(self.num_classes + 2 * FEATURES + 2 * BINS, width, width)
        self.predictor = Mlp(width, width, 5)

    @override
    def prepare(self, student: Seen, teacher: Seen) -> None:
        self.check_sizes(student, teacher)
        pairs = self.pairs(student, teacher)
        own, theirs = ({pair[side].shape[1] for pair in pairs} for side in (0, 1))
        if len(own) > 1 or len(theirs) > 1:
            raise Mistake(
                f"InstanceConditional: all maps of a network need as many channels; the student's have {sorted(own)}, "
                f"the teacher's {sorted(theirs)}"
            )
        self.stride = finest_stride(student.inputs[0], pairs[0][0])
        if self.decoder is None:
            self.build(theirs.pop(), own.pop())

    @override
    def learn(self, labels: Tensor, boxes: Tensor) -> None:
        self.prior.learn(labels, boxes[:, 2:] - boxes[:, :2])

    @override
    def forward(self, student: Seen, teacher: Seen) -> Mapping[str, Tensor]:
        if len(student.inputs) < 2:
            raise Mistake("InstanceConditional needs targets with boxes and labels beside the images")
        sizes = sizes_of(student.inputs[0])
        slots = self.slots(student.inputs[1], sizes)
        described = self.describe(slots, sizes)
        first = teacher.maps(self.teacher_layers)[0]
        padded = (first.shape[2] * self.stride, first.shape[3] * self.stride)
        return self.losses(
            student.maps(self.student_layers), teacher.maps(self.teacher_layers), slots, described, sizes, padded
        )

    def slots(self, targets: Sequence[Mapping[str, Tensor]], sizes: Sequence[Size]) -> Slots:
        """Objects of the annotations, and drawn ones that are not there.

        Args:
            targets: `boxes` [n, 4] in pixels of the image and `labels` [n] of each image.
            sizes: Height and width of each image.
        """
        labels, boxes, others = [], [], []
        for target, (height, width) in zip(targets, sizes, strict=True):
            count = len(target["labels"])
            slots = max(self.fixed_slots, count) if self.fixed_slots else num_slots(count, self.fakes, self.most_slots)
            labels.append(target["labels"])
            boxes.append(target["boxes"] / target["boxes"].new_tensor([width, height, width, height]))
            others.append(self.prior.draw(slots))
        return fill(labels, boxes, [label for label, _ in others], [box for _, box in others])

    def describe(self, slots: Slots, sizes: Sequence[Size]) -> Described:
        """What the decoder is told of the slots, centres jittered."""
        jitter = torch.rand(*slots.labels.shape, 2, device=slots.boxes.device)
        return describe(slots, jitter, sizes, self.num_classes)

    def losses(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        slots: Slots,
        described: Described,
        sizes: Sequence[Size],
        padded: Size,
    ) -> dict[str, Tensor]:
        """Losses of the decoder and of the imitation, by name.

        Args:
            student, teacher: Maps [N, C, H, W] of each level.
            slots: Of the batch.
            described: What the decoder is told of them.
            sizes: Height and width of each image.
            padded: Of the batch that they were padded to.
        """
        assert self.decoder is not None
        assert self.projections is not None
        memory = Memory.of(teacher, sizes, padded)
        looked = self.look(memory, described)
        assert memory.centres is not None
        with torch.no_grad():
            first = slice(slots.most)
            self.observed["focus"] = focus(
                looked[-1].logits[:, :, first], slots.boxes[:, first], slots.is_real[:, first], memory.centres
            )
        identification, localisation = self.auxiliary(looked, slots, described)
        found = {"identification": identification, "localisation": localisation}
        if self.imitation:
            maps = [each.detach() for each in student] if self.step < self.warm_up else student
            values = self.projections(Memory.of(maps, sizes, padded))
            found["imitation"] = self.imitation * self.follow(values, looked, slots)
        return found

    @torch.no_grad()
    def masks(self, teacher: Seen) -> list[list[Tensor]]:
        """Where the decoder looks for the annotated objects of a batch, for pictures.

        Args:
            teacher: An evaluation, with `boxes` and `labels` of each image among its inputs.

        Returns:
            Of each image and level [n, h, w], the mean over the heads; the weights of an object add up to one over all
            levels.
        """
        maps, sizes = teacher.maps(self.teacher_layers), sizes_of(teacher.inputs[0])
        boxes = [
            target["boxes"] / target["boxes"].new_tensor([width, height, width, height])
            for target, (height, width) in zip(teacher.inputs[1], sizes, strict=True)
        ]
        labels = [target["labels"] for target in teacher.inputs[1]]
        slots = fill(labels, boxes, labels, boxes)
        # Nothing jitters: the middle of where a centre may be told.
        told = describe(
            slots, torch.full((*slots.labels.shape, 2), 0.5, device=slots.boxes.device), sizes, self.num_classes
        )
        padded = (maps[0].shape[2] * self.stride, maps[0].shape[3] * self.stride)
        weights = self.look(Memory.of(maps, sizes, padded), told)[-1].logits.softmax(-1).mean(1)
        levels = weights.split([each[0, 0].numel() for each in maps], -1)
        levels = [level.unflatten(-1, each.shape[2:]) for level, each in zip(levels, maps, strict=True)]
        return [[level[i, : len(each)] for level in levels] for i, each in enumerate(labels)]

    def look(self, memory: Memory, described: Described) -> list[Looked]:
        """Where the decoder looks for the slots, and what it finds, by layer."""
        assert self.decoder is not None
        assert self.describer is not None
        return self.decoder(self.describer(described.descriptors.to(memory.cells.dtype)), memory)

    def auxiliary(self, looked: Sequence[Looked], slots: Slots, described: Described) -> tuple[Tensor, Tensor]:
        """Both losses of the decoder, summed over its layers."""
        assert self.predictor is not None
        losses = [auxiliary_losses(self.predictor(each.features), described.distances, slots) for each in looked]
        return torch.stack([each[0] for each in losses]).sum(), torch.stack([each[1] for each in losses]).sum()

    def follow(self, values: Sequence[Tensor], looked: Sequence[Looked], slots: Slots) -> Tensor:
        """The imitation, without its weight, the mean over the layers."""
        first = slice(None if self.with_fakes else slots.most)
        counts = (~slots.is_empty if self.with_fakes else slots.is_real)[:, first]
        temperature = self.temperature_now()
        if isinstance(temperature, Tensor):
            self.observed["temperature"] = temperature.detach()
        losses = [
            imitation_loss(
                own,
                each.values.detach(),
                weight_map(each.logits[:, :, first].detach(), counts, temperature),
                self.form,
                self.norm,
                self.per_image,
                self.eps,
            )
            for own, each in zip(values, looked, strict=True)
        ]
        return torch.stack(losses).mean()

    def temperature_now(self) -> float | Tensor:
        """The temperature of this step."""
        if self.learnt is not None:
            return self.learnt.clamp(*LEARNT)
        if self.last_temperature is None:
            return self.temperature
        done = min(1.0, self.step / max(1, self.total_steps))
        return self.temperature + (self.last_temperature - self.temperature) * done
