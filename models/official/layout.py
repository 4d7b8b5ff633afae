"""The engine of `models.official`: names of an official checkpoint to ours and back, by the table of a system.

A system's file is a `Layout`: rows of an official name, our name and what a module of that kind holds, in the patterns
of `models.official.patterns`.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from models.official import haiku
from models.official.patterns import OFFICIAL, OURS, Group, Names, Slot
from models.pixels import Stated

State = dict[str, Tensor]
# What a module holds: official name and ours.
Contents = dict[str, str]


class LayoutError(ValueError):
    """A checkpoint that is not in the layout it should be in."""


def holds(*names: str) -> Contents:
    """What a module holds under the same names in both layouts."""
    return {name: name for name in names}


def within(official: str, ours: str, contents: Contents) -> Contents:
    """What a module holds in a module inside of it, `official` and `ours` by name."""
    return {f"{official}.{theirs}": f"{ours}.{mine}" for theirs, mine in contents.items()}


WEIGHT = holds("weight")
WEIGHT_BIAS = holds("weight", "bias")
BATCH_NORM = holds("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ATTENTION = holds("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")

# How the name of a norm's number of batches ends.
COUNTER = ".num_batches_tracked"

# Official name, our name (or `SAME`) and contents; without contents the names of one tensor, or of all that fit a `*`.
Row = tuple[str, str] | tuple[str, str, Contents]
SAME = "="


@dataclass(frozen=True)
class Maybe:
    """Rows that weights have all of, or none.

    Args:
        rows: The rows.
        per: Names of numbers, separated by blanks: all or none is asked for each of their values; without any, once.
    """

    rows: Sequence[Row]
    per: str = ""


Table = Sequence[Row | Maybe]
_Part = TypeVar("_Part", bound=Row | Maybe)


def inside(table: Iterable[_Part], official: str, ours: str) -> list[_Part]:
    """The rows of a network that is a part of another, where its numbers count for themselves.

    Args:
        table: The rows.
        official: Name of the part in the official layout; empty for none.
        ours: The same in ours.
    """
    scope = re.sub(r"[^a-zA-Z]", "", official)

    def moved(part: Row | Maybe) -> Row | Maybe:
        if isinstance(part, Maybe):
            return Maybe(inside(part.rows, official, ours), " ".join(name + scope for name in part.per.split()))
        theirs, mine = (
            re.sub(r"\{(\d*[a-zA-Z]+)", rf"{{\1{scope}", name)
            for name in (part[0], part[0] if part[1] == SAME else part[1])
        )
        return (f"{official}.{theirs}".lstrip("."), f"{ours}.{mine}".lstrip("."), *part[2:])

    return [cast(_Part, moved(part)) for part in table]


@dataclass(frozen=True)
class Layout:
    """Names of a system's weights, official and ours.

    Args:
        title: What the weights are, as messages call them.
        tables: One a variant of the system; weights are those of the one that fits best.
        official: Regular expressions by which official weights are recognised: of whole names, of which some fit each
            expression, and none one after a `!`.
        ours: The same for ours.
        older: Tables of names that are understood too, but not written.
        left_out: What ours have no place for: what it is, and a regular expression of the whole official names.
        unpack: Called with official weights before they are renamed: takes away what `pack` can give back, such as all
            but one of tensors that are repeated, and brings others to our shape.
        pack: Its inverse. Official weights must hold all that it gives back, and the same values.
        pixels: How the images look that the published weights expect (`models.pixels`), or a function that tells it by
            the official weights; None where nobody has published it.
        published: Of a student and a teacher, the one that the paper evaluates; None for no such pair.
        options: Called with our weights: options of the network that follow from their shapes, where networks of this
            system come in any widths.
    """

    title: str
    tables: Sequence[Table]
    official: Sequence[str]
    ours: Sequence[str]
    older: Sequence[Table] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    unpack: Callable[[State], State] = dict
    pack: Callable[[State], State] = dict
    pixels: Stated | Callable[[State], Stated | None] | None = None
    published: str | None = None
    options: Callable[[State], Mapping[str, Any]] | None = None

    def matches(self, state: Mapping[str, Any]) -> bool:
        """Whether names look like official weights of this system, wrapped or not."""
        return _recognised(bare(state)[0], self.official)

    def matches_ours(self, state: Mapping[str, Any]) -> bool:
        """Whether names look like our weights of this system, wrapped or not."""
        return _recognised(bare(state)[0], self.ours)

    def to_ours(self, state: Mapping[str, Any]) -> State:
        """Official weights to our layout.

        Args:
            state: Weights by official name, wrapped or not.

        Returns:
            Weights by our name.

        Raises:
            LayoutError: Missing or unknown names, or tensors that this layout cannot have.
        """
        given, what = unwrap(state), f"the official {self.title} layout"
        for why, names in self.left_out.items():
            left_out = [name for name in given if re.fullmatch(names, name)]
            tell_left_out(left_out, why)
            given = {name: value for name, value in given.items() if name not in left_out}
        kept = self.unpack(given)
        ours = self._renamed(kept, self._official_names, OFFICIAL, what)
        back = {name: value for name, value in self.pack(kept).items() if name not in kept}
        refuse([name for name in back if name not in given], [name for name in given if name not in kept | back], what)
        if other := [name for name, value in back.items() if not torch.equal(given[name].to(value.dtype), value)]:
            raise LayoutError(f"not the values that follow from other weights in {what}: {some(other)}")
        return ours

    def to_official(self, state: Mapping[str, Any]) -> State:
        """Our weights to the official layout; the inverse of `to_ours`.

        Args:
            state: Weights by our name, wrapped or not.

        Returns:
            Weights by official name, without wrappers.

        Raises:
            LayoutError: Missing or unknown names.
        """
        return self.pack(self._renamed(unwrap(state), self._our_names, OURS, f"our {self.title} layout"))

    def pixels_of(self, state: Mapping[str, Any]) -> Stated | None:
        """How the images look that official weights expect, if that is known.

        Args:
            state: Weights by official name, wrapped or not.
        """
        return self.pixels(unwrap(state)) if callable(self.pixels) else self.pixels

    def our_name(self, name: str) -> str:
        """Official name of a tensor to ours; an unknown one stays as it is."""
        return self._name(name, OFFICIAL)

    def official_name(self, name: str) -> str:
        """Our name of a tensor to the official one; an unknown one stays as it is."""
        return self._name(name, OURS)

    def _name(self, name: str, side: int) -> str:
        found = (names.find(name, side) for names in self._our_names)
        return next((place.on(1 - side) for place in found if place), name)

    @staticmethod
    def _renamed(state: State, tables: Sequence[Names], side: int, what: str) -> State:
        fits = [names.fit(list(state), side) for names in tables]
        best = min(fits, key=lambda fit: len(fit.missing) + len(fit.unknown))
        counters = [name for name in best.missing if name.endswith(COUNTER)]
        if counters and not any(name.endswith(COUNTER) for name in state):
            # The first versions of torch, and others' norms, count no batches.
            counted = state | {name: torch.tensor(0) for name in counters}
            return Layout._renamed(counted, tables, side, what)
        refuse(best.missing, best.unknown, what)
        renamed = {best.renamed[name]: value for name, value in state.items()}
        if len(renamed) < len(state):
            twice = [name for name, new in best.renamed.items() if list(best.renamed.values()).count(new) > 1]
            raise LayoutError(f"keys do not fit {what}: several for the same tensor, {some(twice)}")
        return renamed

    @cached_property
    def _our_names(self) -> list[Names]:
        return [Names(_slots(table)) for table in self.tables]

    @cached_property
    def _official_names(self) -> list[Names]:
        return [*self._our_names, *(Names(_slots(table)) for table in self.older)]


def _slots(table: Table) -> list[Slot]:
    slots = []
    for i, part in enumerate(table):
        group = Group(i, part.per.split()) if isinstance(part, Maybe) else None
        for row in part.rows if isinstance(part, Maybe) else [part]:
            official, ours = row[0], row[0] if row[1] == SAME else row[1]
            if len(row) == 2:
                slots.append(Slot(official, ours, group))
            else:
                slots += [Slot(f"{official}.{theirs}", f"{ours}.{mine}", group) for theirs, mine in row[2].items()]
    return slots


def unwrap(checkpoint: Any, ema: bool = False) -> State:
    """The weights in a loaded checkpoint, without the wrappers of training code.

    Understands bare weights, files that hold them in one of several entries (`model`, `state_dict` ...), in turn
    perhaps in others, and names that data parallelism, compilation, exponential averaging or a training module have
    put a beginning before. What a training leaves besides, such as the buffers of a criterion, is left out and told.

    Args:
        checkpoint: What `torch.load` or safetensors returned.
        ema: Whether to take the averaged weights instead of the raw ones.

    Raises:
        LayoutError: No weights in it, or no averaged ones although asked for.
    """
    if not isinstance(checkpoint, Mapping):
        raise LayoutError(f"not a checkpoint: it holds a {type(checkpoint).__name__}, not named tensors")
    weights, left_out = bare(_entry(checkpoint, ema))
    if not weights:
        raise LayoutError(f"no weights in it (it has {some(checkpoint)})")
    tell_left_out(left_out, "of a training, not of its network")
    return weights


# Entries of a checkpoint; the first is that of our runs whose weights are averaged.
_RAW = (
    *("current_model_state", "model", "state_dict", "model_state_dict", "model_state", "net", "network", "params"),
    *("weights", "module", "blobs", "student"),
)
_AVERAGED = (
    *("model_ema", "state_dict_ema", "params_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict"),
    "teacher",
)
_DEEPEST = 8
# What stands before every name. Compilation, sharding and recomputing of a part put theirs in the middle.
_WRAPPERS = ("module.", "model.", "network.", "net.", "_forward_module.")
_COMPILED = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What a training leaves beside weights: criteria, averages, counters of profilers, numbers of epochs and of averages.
_LEFTOVERS = re.compile(
    r"(loss|losses|criterion|criterions|metrics?|optimizers?|(lr_)?schedulers?|model_ema|ema_model|ema)\..*"
    r"|(.*\.)?total_(ops|params)"
    r"|(epoch|iteration|iter|step|global_step|n_averaged)"
)


def bare(state: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Weights without what training code has put before their names, and the names of what is left out.

    Raises:
        LayoutError: Two of the names are then the same.
    """
    weights = {_COMPILED.sub("", str(name)): value for name, value in state.items()}
    if len(weights) < len(state):
        raise LayoutError(f"weights of a compiled network and of one that is not, under the same names ({some(state)})")
    left_out = []
    while True:
        leftovers = [
            name for name, value in weights.items() if not isinstance(value, Tensor) or _LEFTOVERS.fullmatch(name)
        ]
        if any(name.startswith("network.") for name in weights):
            # A run of ours: everything else is not the network's.
            leftovers = [name for name in weights if not name.startswith("network.")]
        left_out += leftovers
        for name in leftovers:
            del weights[name]
        wrapper = next((wrapper for wrapper in _WRAPPERS if all(name.startswith(wrapper) for name in weights)), None)
        if wrapper is None or not weights:
            return weights, left_out
        weights = {name.removeprefix(wrapper): value for name, value in weights.items()}


def _entry(checkpoint: Mapping[str, Any], ema: bool, depth: int = 0) -> Mapping[str, Any]:
    if depth > _DEEPEST:
        raise LayoutError("no weights in it: its entries hold each other")
    # In our checkpoints the average stands where other callbacks and Lightning itself look for weights.
    averaged = ("state_dict", *_AVERAGED) if "averaging_state" in checkpoint else _AVERAGED
    if not ema and (both := _of_a_pair(checkpoint) or haiku.flat(checkpoint)):
        return both
    entries = averaged if ema else (*_RAW, *averaged)
    entry = next((name for name in entries if isinstance(checkpoint.get(name), Mapping) and checkpoint[name]), None)
    if entry is not None:
        return _entry(checkpoint[entry], False, depth + 1)
    if ema:
        raise LayoutError(f"no averaged weights in it (it has {some(checkpoint)})")
    return checkpoint


def _of_a_pair(checkpoint: Mapping[str, Any]) -> State | None:
    """All of a training of DINO, whose student, teacher and centre lie in entries of their own; None of any other."""
    parts = {name: checkpoint.get(name) for name in ("student", "teacher", "dino_loss")}
    if not all(isinstance(part, Mapping) for part in parts.values()):
        return None
    sides = {side: bare(cast(Mapping[str, Any], parts[side]))[0] for side in ("student", "teacher")}
    weights = {f"{side}.{name}": value for side, state in sides.items() for name, value in state.items()}
    return weights | bare(cast(Mapping[str, Any], parts["dino_loss"]))[0]


def tell_left_out(names: Iterable[str], why: str) -> None:
    """Warn of tensors that are not converted, by the parts that they belong to.

    Args:
        names: Their names; nothing is said of none.
        why: What they are.
    """
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".")[0], []).append(name)
    if parts:
        listed = (of_it[0] if len(of_it) == 1 else f"{part} ({len(of_it)} tensors)" for part, of_it in parts.items())
        warnings.warn(f"left out ({why}): {some(listed)}", stacklevel=3)


def check_keys(state: Mapping[str, Tensor], expected: set[str], what: str) -> None:
    """Refuse names that are missing or unknown.

    Raises:
        LayoutError: Naming them.
    """
    refuse(sorted(expected - state.keys()), sorted(state.keys() - expected), what)


def refuse(missing: Sequence[str], unknown: Sequence[str], what: str) -> None:
    """Refuse weights if there are missing or unknown names.

    Raises:
        LayoutError: Naming them.
    """
    complaints = [f"{kind} {some(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
    if complaints:
        raise LayoutError(f"keys do not fit {what}: {'; '.join(complaints)}")


def some(names: Iterable[Any], limit: int = 6) -> str:
    """A readable list in one line: the first few names and how many more there are."""
    listed = [text if (text := str(name)).isprintable() else ascii(text) for name in names]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _recognised(names: Iterable[str], expressions: Sequence[str]) -> bool:
    text = "\n".join(names)
    return all(
        bool(re.search(rf"^({expression.removeprefix('!')})$", text, re.MULTILINE)) != expression.startswith("!")
        for expression in expressions
    )
