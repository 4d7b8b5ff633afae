"""Builders of the recorded cases of instance-conditional distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.distillation import InstanceConditional
from models.distillation.instance_conditional.decoder import ConditionalDecoder, Looked, ValueProjections
from models.distillation.instance_conditional.instances import Mlp, Slots, boxes_of_draws, describe, fill
from models.distillation.instance_conditional.losses import auxiliary_losses, imitation_loss, weight_map
from models.distillation.instance_conditional.memory import Memory, padding_mask
from models.layers.position_encoding import sine_position_encoding
from models.official.icd import decoder_of, perceptron_of, projections_of, term_of

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5
KEYS = ("p3", "p4", "p5")
FORMS = {"L1": "l1", "L2": "l2", "smoothL1": "smooth_l1", "mse": "mse"}
NORMS = {"ln": "both", "tln": "teacher", "none": "none"}


def ZERO(config: dict[str, Any]) -> dict[str, float]:
    """A bias of the positions moves all logits of a query alike, unless it is on the values, too."""
    if config.get("decoder_posemb_on_v"):
        return {}
    layers = ["", *(f"matt.{layer}." for layer in range(config.get("att_layers", 0)))]
    return {f"grad.{layer}pos_projector.bias": 1e-7 for layer in layers}


def sizes(value: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in value.tolist()]


def term(case: Case, **options: object) -> InstanceConditional:
    config = case.config
    built = InstanceConditional(
        config["num_classes"],
        imitation=config.get("weight_value", 8.0),
        num_heads=config["heads"],
        num_layers=config.get("att_layers", 1),
        project_position=config.get("project_pos", True),
        position_on_values=config.get("decoder_posemb_on_v", False),
        fakes=config["neg_pos_ratio"],
        most_slots=config["max_labels"],
        warm_up=config.get("bypass_distill", 1000),
        **options,  # type: ignore[arg-type]
    )
    built.build(config["hidden_dim"])
    return built


def pos_mask(case: Case) -> dict[str, Tensor]:
    results = {}
    padded = tuple(case.inputs["padded_size"].tolist())
    for key, cells in zip(case.config["feat_keys"], case.inputs["feat_sizes"].tolist(), strict=True):
        mask = padding_mask(cells, sizes(case.inputs["image_sizes"]), padded, torch.device("cpu"))  # type: ignore[arg-type]
        results[f"out.mask.{key}"] = mask[:, None].long()
        results[f"out.pos.{key}"] = sine_position_encoding(mask, case.config["num_pos_feats"])
    return results


def fake_boxes(case: Case) -> dict[str, Tensor]:
    labels = case.inputs["class"]
    mean, std = case.inputs["pos_prior"][labels].unbind(1)
    boxes = boxes_of_draws(mean[:, 2:], std[:, 2:], case.inputs["z"][:, 2:], case.inputs["u_xy"])
    return {"out.box": boxes, "out.class": labels}


def drawn(case: Case) -> tuple[Slots, Tensor]:
    """The recorded slots, and how their centres are jittered."""
    labels, boxes, fake_labels, fake_boxes, jitters = [], [], [], [], []
    for i, (height, width) in enumerate(case.inputs["image_sizes"].tolist()):
        labels.append(case.inputs[f"gt_classes.{i}"])
        boxes.append(case.inputs[f"gt_boxes.{i}"] / torch.tensor([width, height, width, height]))
        fake_labels.append(case.inputs[f"draw.{i}.class"])
        fake_boxes.append(case.inputs[f"draw.{i}.box"])
        jitters.append(case.inputs[f"draw.{i}.jitter_u"])
    slots = fill(labels, boxes, fake_labels, fake_boxes)
    return slots, nn.utils.rnn.pad_sequence(jitters, batch_first=True, padding_value=0.5)


def last_size(case: Case) -> list[tuple[int, int]]:
    """The published code takes the last image's size for all of a batch, for the bins of sizes."""
    found = sizes(case.inputs["image_sizes"])
    return found[-1:] * len(found)


def instance_encoder(case: Case) -> dict[str, Tensor]:
    slots, jitter = drawn(case)
    described = describe(slots, jitter, last_size(case), case.config["num_classes"], case.config["sample_range"])
    encoder = Mlp(described.descriptors.shape[2], case.config["hidden_dim"], case.config["hidden_dim"])
    state = {name.removeprefix("encoder."): value for name, value in case.state.items() if name.startswith("encoder.")}
    encoder.load_state_dict(perceptron_of(state))
    extent = slots.boxes[..., 2:] - slots.boxes[..., :2]
    centre = described.distances[..., :2] + slots.boxes[..., :2]
    assert (extent >= 0).all()
    return {
        "out.descriptor": described.descriptors.transpose(0, 1),
        "out.is_real": slots.is_real.to(jitter.dtype),
        "out.jittered_center": centre,
        "out.labels": slots.labels,
        "out.pad_mask": slots.is_empty.long(),
        "out.query": encoder(described.descriptors).transpose(0, 1),
        "out.target_ltrb": described.distances,
    }


def decoder(case: Case) -> dict[str, Tensor]:
    config = case.config
    options = (
        config["hidden_dim"],
        config["heads"],
        config["att_layers"],
        config.get("project_pos", True),
        config.get("decoder_posemb_on_v", False),
    )
    ours, projections = ConditionalDecoder(*options), ValueProjections(*options)
    ours.load_state_dict(decoder_of(case.state))
    projections.load_state_dict(projections_of(case.state, options[-1]))
    memory = Memory(
        case.inputs["memory"].transpose(0, 1),
        case.inputs["key_padding_mask"].bool(),
        case.inputs["pos"].transpose(0, 1),
    )
    found = ours(case.inputs["query"].transpose(0, 1), memory)
    loss = torch.stack([each.features.square().mean() for each in found]).sum()
    loss.backward()
    results = {"out.loss": loss}
    for i, (each, values) in enumerate(zip(found, projections(memory), strict=True)):
        results[f"out.feat.{i}"] = each.features.transpose(0, 1)
        results[f"out.logits.{i}"] = each.logits
        results[f"out.value.{i}"] = each.values.transpose(0, 1)
        results[f"out.value_proj_only.{i}"] = values.transpose(0, 1)
    names = {name: next(iter(decoder_of({name: case.state[name]}))) for name in case.state}
    own = dict(ours.named_parameters())
    return results | {f"grad.{name}": own[mine].grad for name, mine in names.items()}


def aux_loss(case: Case) -> dict[str, Tensor]:
    width = case.config["hidden_dim"]
    predictor = Mlp(width, width, 5)
    state = {name.removeprefix("predictor."): value for name, value in case.state.items()}
    predictor.load_state_dict(perceptron_of(state))
    decoded = case.inputs["decoded"].requires_grad_()
    empty = torch.zeros_like(case.inputs["pad_mask"])
    slots = Slots(empty, case.inputs["target_ltrb"], case.inputs["is_real"].bool(), case.inputs["pad_mask"].bool())
    conf, reg = auxiliary_losses(predictor(decoded).transpose(0, 1), case.inputs["target_ltrb"], slots)
    (conf + reg).backward()
    own = dict(predictor.named_parameters())
    grads = {f"grad.predictor.{name}": own[next(iter(perceptron_of({name: state[name]})))].grad for name in state}
    return {"out.conf": conf, "out.reg": reg, "grad.decoded": decoded.grad} | grads


def distill_loss(case: Case) -> dict[str, Tensor]:
    state = {name.removeprefix("attention_module."): value for name, value in case.state.items()}
    layers = range(case.config["att_layers"])
    padded = tuple(case.inputs["padded_size"].tolist())
    empty = torch.zeros_like(case.inputs["pad_mask"])
    slots = Slots(empty, empty, case.inputs["is_real"].bool(), case.inputs["pad_mask"].bool())
    looked = [
        Looked(empty, case.inputs[f"teacher_logits.{i}"], case.inputs[f"teacher_value.{i}"].transpose(0, 1))
        for i in layers
    ]

    def run(**options: object) -> tuple[Tensor, list[Tensor], InstanceConditional]:
        built = term(case, **options)
        assert built.projections is not None
        built.projections.load_state_dict(projections_of(state))
        maps = [case.inputs[f"student.{key}"].clone().requires_grad_() for key in KEYS]
        return built.imitation * 0, maps, built  # type: ignore[return-value]

    def loss_of(built: InstanceConditional, maps: list[Tensor], flag: bool = True) -> Tensor:
        assert built.projections is not None
        seen = maps if flag else [each.detach() for each in maps]
        memory = Memory.of(seen, sizes(case.inputs["image_sizes"]), padded)  # type: ignore[arg-type]
        return built.imitation * built.follow(built.projections(memory), looked, slots)

    results: dict[str, Tensor] = {}
    for name in case.shapes:
        if name.startswith("out.loss.tempdecay"):
            start, _, rest = name.removeprefix("out.loss.tempdecay_").partition("_to_")
            end, _, place = rest.partition(".iter")
            _, maps, built = run(temperature=float(start), last_temperature=float(end))
            built.step, built.total_steps = map(int, place.split("of"))
            results[name] = loss_of(built, maps)
        elif name.startswith("out.loss."):
            variant = name.removeprefix("out.loss.")
            form, norm, rest = variant.split(".", 2)
            temperature, negative, flag = rest.rsplit(".", 2)
            _, maps, built = run(
                form=FORMS[form],
                norm=NORMS[norm],
                temperature=float(temperature.removeprefix("T")),
                with_fakes=negative == "neg1",
            )
            assert built.projections is not None
            results[name] = loss_of(built, maps, flag == "flag1")
            results[name].backward()
            for key, each in zip(KEYS, maps, strict=True):
                results[f"out.grad_feat.{variant}.{key}"] = each.grad if each.grad is not None else torch.zeros(())
            for i in layers:
                layer = built.projections.layers[i]
                weight, bias = layer.weight.grad, layer.bias.grad
                place = f"grad.{variant}:attention_module.matt.{i}.matt"
                results[f"{place}.in_proj_weight"] = torch.cat([torch.zeros(2 * len(weight), weight.shape[1]), weight])
                results[f"{place}.in_proj_bias"] = torch.cat([torch.zeros(2 * len(bias)), bias])
    return results


def distill_loss_megengine(case: Case) -> dict[str, Tensor]:
    values = case.inputs["student_value"].requires_grad_()
    weights = weight_map(case.inputs["teacher_logits"], case.inputs["is_real"].bool(), case.config["temp_value"])
    student, teacher = (each.transpose(0, 1) for each in (values, case.inputs["teacher_value"]))
    loss = imitation_loss(student, teacher, weights, per_image=False, eps=case.config["ln_eps"])
    loss = case.config["weight_value"] * loss
    loss.backward()
    return {"out.loss": loss, "out.value_mask": weights[:, :, None], "grad.student_value": values.grad}  # type: ignore[dict-item]


def full_step(case: Case) -> dict[str, Tensor]:
    padded = tuple(case.inputs["padded_size"].tolist())
    found: dict[str, Tensor] = {}
    for step in (999, 1000):
        built = term(case)
        missing = built.load_state_dict(term_of(case.state), strict=False)
        assert missing.missing_keys == ["prior.frequency", "prior.mean", "prior.std"]
        slots, jitter = drawn(case)
        described = describe(slots, jitter, last_size(case), case.config["num_classes"], case.config["sample_range"])
        built.step = step
        student = [case.inputs[f"student.{key}"].clone().requires_grad_() for key in KEYS]
        teacher = [case.inputs[f"teacher.{key}"] for key in KEYS]
        losses = built.losses(student, teacher, slots, described, sizes(case.inputs["image_sizes"]), padded)  # type: ignore[arg-type]
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        found |= {
            f"out.it{step}.tea.0.prop_conf": losses["identification"],
            f"out.it{step}.tea.0.prop_reg": losses["localisation"],
            f"out.it{step}.distill.0.matt.value": losses["imitation"],
            f"out.it{step}.total": total,
        }
        for key, each in zip(KEYS, student, strict=True):
            found[f"out.it{step}.grad_student.{key}"] = torch.zeros_like(each) if each.grad is None else each.grad
    own = dict(built.named_parameters())
    used = set()
    for name in case.state:
        for mine in term_of({name: case.state[name]}):
            gradient = own[mine].grad
            assert gradient is not None
            used.add(name)
            if name.startswith("distillers"):
                width = gradient.shape[0]
                gradient = torch.cat([torch.zeros(2 * width, *gradient.shape[1:]), gradient])
            found[f"grad.{name}"] = gradient
    found["out.no_grad_params"] = torch.tensor(len(case.state.keys() - used))
    return found


CASES = {
    "pos_mask": pos_mask,
    "fake_boxes": fake_boxes,
    "instance_encoder": instance_encoder,
    "decoder": decoder,
    "aux_loss": aux_loss,
    "distill_loss": distill_loss,
    "distill_loss_megengine": distill_loss_megengine,
    "full_step": full_step,
}
