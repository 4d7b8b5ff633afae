"""What the decoder learns, and how maps are matched where it looks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distillation.instance_conditional.instances import Slots
from models.mistakes import Mistake

Form = Literal["mse", "l1", "smooth_l1", "l2"]
Norm = Literal["both", "teacher", "none"]


def auxiliary_losses(predicted: Tensor, distances: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """Whether each object is there, and how far the sides of those that are lie from the told centre.

    Args:
        predicted: [N, K, 5], a logit of being there and four logits of distances.
        distances: [N, K, 4], relative to the image.
        slots: Of the batch.

    Returns:
        Mean cross-entropy of the slots with something in them, and mean distance, in widths and heights of the box, of
        the real ones; 0 where there are none. Single precision.
    """
    predicted = predicted.float()
    entropy = F.binary_cross_entropy_with_logits(predicted[..., 0], slots.is_real.to(predicted.dtype), reduction="none")
    used = (~slots.is_empty).to(predicted.dtype)
    identification = (entropy * used).sum() / used.sum().clamp(min=1)
    box = (distances + distances[..., [2, 3, 0, 1]]).clamp(min=1e-7)
    error = ((predicted[..., 1:].sigmoid() - distances).abs() / box).sum(-1)
    real = slots.is_real.to(predicted.dtype)
    return identification, (error * real).sum() / real.sum().clamp(min=1)


def weight_map(logits: Tensor, counts: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Where the decoder looked for some slots of each image, added up.

    Args:
        logits: [N, H, K, S].
        counts: bool [N, K], the slots.
        temperature: What logits are divided by.

    Returns:
        [N, H, S].
    """
    weights = (logits / temperature).softmax(-1)
    return torch.einsum("nhks,nk->nhs", weights, counts.to(weights.dtype))


def focus(logits: Tensor, boxes: Tensor, counts: Tensor, centres: Tensor) -> Tensor:
    """How much more a decoder looks into the boxes of objects than it would if it looked everywhere alike.

    Args:
        logits: [N, H, K, S].
        boxes: [N, K, 4], x0, y0, x1, y1 relative to the image.
        counts: bool [N, K], the slots with objects.
        centres: [N, S, 2], x and y of each cell relative to the image, beyond 1 on padding.

    Returns:
        Share of the weights that is within the box, the mean over heads, by the box's share of the image; the mean over
        all objects, 0 without any.
    """
    x, y = centres[:, None].unbind(-1)
    x0, y0, x1, y1 = boxes.unsqueeze(-2).unbind(-1)
    inside = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    mass = torch.einsum("nhks,nks->nk", logits.softmax(-1), inside.to(logits.dtype)) / logits.shape[1]
    area = ((x1 - x0) * (y1 - y0))[..., 0].clamp(min=1e-6)
    used = counts.to(mass.dtype)
    return (mass / area * used).sum() / used.sum().clamp(min=1)


def imitation_loss(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    form: Form = "mse",
    norm: Norm = "both",
    per_image: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """How far the student's values are from the teacher's, where the weights are.

    Args:
        student: Values [N, S, H, d].
        teacher: Values of the same shape.
        weights: [N, H, S].
        form: Of the distance. All but `mse` divide by the weights of all images and heads together.
        norm: Whose values get mean 0 and deviation 1 over their d channels.
        per_image: Divide, with `mse`, by the weights of each image and head, and take the mean of these; an image
            without weights counts with 0. Otherwise as the other forms do.
        eps: Of the norm.

    Returns:
        A scalar in single precision.

    Raises:
        Mistake: An unknown form.
    """
    student, teacher, weights = student.float(), teacher.float(), weights.float()
    channels = (student.shape[-1],)
    if norm in ("both", "teacher"):
        teacher = F.layer_norm(teacher, channels, eps=eps)
    if norm == "both":
        student = F.layer_norm(student, channels, eps=eps)
    distances = {"mse": F.mse_loss, "l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
    if form not in distances:
        raise Mistake(f"form is one of {', '.join(distances)}, not {form!r}")
    far = distances[form](student, teacher, reduction="none").mean(-1).transpose(1, 2)
    if form == "mse" and per_image:
        return ((far * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)).mean()
    found = (far * weights).sum() / weights.sum().clamp(min=1e-6)
    return found.sqrt() if form == "l2" else found
