"""Patterns of names, and what must be there of the names that they are patterns of.

In a pattern `{block}` stands for a number that counts from 0 and is the same in the official layout and in ours,
`{block+1}` for one that counts from 1, `{2block}` for every second one, and `*` for anything.

Numbers of one name count together: where there is a pattern `layers.{layer}.norm.bias`, it has to be there for every
layer that any pattern has found. A number behind others is counted anew under each of them, unless its name begins
with a capital letter.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

OFFICIAL, OURS = 0, 1

# By the name of a number.
Values = Mapping[str, int]
# The name of a number, and the numbers before it.
_Counter = tuple[str, tuple[int, ...]]


class Pattern:
    """A pattern of names."""

    def __init__(self, pattern: str) -> None:
        self.anything = re.compile(re.escape(pattern).replace(r"\*", "(.*)")) if "*" in pattern else None
        self.parts: list[str] = []
        # Factor, name and offset of each number; the name of one that does not change is empty.
        self.numbers: list[tuple[int, str, int]] = []
        end = 0
        for match in re.finditer(r"\{(\d*)([a-zA-Z]+)(?:\+(\d+))?\}|\d+", pattern):
            self.parts.append(pattern[end : match.start()])
            factor, name, offset = match.groups()
            self.numbers.append((int(factor or 1), name, int(offset or 0)) if name else (0, "", int(match[0])))
            end = match.end()
        self.parts.append(pattern[end:])
        self.skeleton = "#".join(self.parts)

    def read(self, digits: Sequence[str]) -> dict[str, int] | None:
        """The values of the numbers in a name of this skeleton; None if it does not fit."""
        values = {}
        for written, (factor, name, offset) in zip(digits, self.numbers, strict=True):
            if not name:
                if written != str(offset):
                    return None
                continue
            # Longer ones are no numbers of layers.
            value, remainder = divmod(int(written[:9]) - offset, factor)
            if remainder or value < 0 or written != str(factor * value + offset):
                return None
            values[name] = value
        return values

    def write(self, values: Values) -> str:
        """The name with these numbers."""
        digits = [str(factor * values[name] + offset if name else offset) for factor, name, offset in self.numbers]
        return "".join(part + digit for part, digit in zip(self.parts, [*digits, ""], strict=True))

    def counted(self, values: Values) -> Iterator[tuple[_Counter, int]]:
        """What each number counts, and its value."""
        before: tuple[int, ...] = ()
        for _, name, constant in self.numbers:
            if name:
                yield (name, () if name[0].isupper() else before), values[name]
            before += (values[name] if name else constant,)

    def instances(self, last: Mapping[_Counter, int]) -> list[dict[str, int]]:
        """All values of the numbers, from 0 to the last of what each counts."""
        found: list[tuple[dict[str, int], tuple[int, ...]]] = [({}, ())]
        for _, name, constant in self.numbers:
            longer: list[tuple[dict[str, int], tuple[int, ...]]] = []
            for values, before in found:
                if name:
                    count = 1 + last.get((name, () if name[0].isupper() else before), 0)
                    longer += [(values | {name: value}, (*before, value)) for value in range(count)]
                else:
                    longer.append((values, (*before, constant)))
            found = longer
        return [values for values, _ in found]


@dataclass(frozen=True)
class Group:
    """Names that are there together or not at all.

    Args:
        index: Which group of a table.
        per: Numbers for whose values this is asked separately.
    """

    index: int
    per: Sequence[str]

    def key(self, values: Values) -> tuple[int, ...]:
        """Which group, and for which values."""
        return self.index, *(values[name] for name in self.per)


class Slot:
    """The place of a tensor, or of one for each value of the numbers, in both layouts."""

    def __init__(self, official: str, ours: str, group: Group | None) -> None:
        self.patterns = Pattern(official), Pattern(ours)
        self.group = group


@dataclass(frozen=True)
class Place:
    """A name that was found: in which slot, the values of its numbers, or what its `*` stands for."""

    slot: Slot
    values: Values = field(default_factory=dict)
    anything: str = ""

    def on(self, side: int) -> str:
        """The name in the official layout or in ours."""
        return self.slot.patterns[side].write(self.values).replace("*", self.anything)


@dataclass(frozen=True)
class Fit:
    """How given names fit.

    Args:
        renamed: The name on the other side of those that do.
        missing: Names that should be there too.
        unknown: Names that have no place.
    """

    renamed: Mapping[str, str]
    missing: list[str]
    unknown: list[str]


class Names:
    """All names of a layout, official and ours."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.by_skeleton: list[dict[str, list[Slot]]] = [{}, {}]
        for slot in slots:
            for side, index in enumerate(self.by_skeleton):
                index.setdefault(slot.patterns[side].skeleton, []).append(slot)

    def find(self, name: str, side: int) -> Place | None:
        """Where a name of the official layout, or of ours, has its place."""
        skeleton, digits = re.sub(r"\d+", "#", name), re.findall(r"\d+", name)
        for slot in self.by_skeleton[side].get(skeleton, []):
            if (values := slot.patterns[side].read(digits)) is not None:
                return Place(slot, values)
        for slot in self.slots:
            anything = slot.patterns[side].anything
            if anything and (match := anything.fullmatch(name)):
                return Place(slot, anything=match[1])
        return None

    def fit(self, names: Sequence[str], side: int) -> Fit:
        """How well names are those of this layout."""
        found = {}
        for name in names:
            place = self.find(name, side)
            # There cannot be more of anything than tensors.
            if place and max(place.values.values(), default=0) < len(names):
                found[name] = place
        missing = [name for name in self._expected(found.values(), side) if name not in found]
        renamed = {name: place.on(1 - side) for name, place in found.items()}
        return Fit(renamed, missing, [name for name in names if name not in found])

    def _expected(self, found: Iterable[Place], side: int) -> Iterator[str]:
        last: dict[_Counter, int] = {}
        groups, taken = set(), set()
        for place in found:
            taken.add(place.slot)
            if place.slot.group:
                groups.add(place.slot.group.key(place.values))
            for counter, value in place.slot.patterns[OFFICIAL].counted(place.values):
                last[counter] = max(last.get(counter, 0), value)
        for slot in self.slots:
            if slot.patterns[OFFICIAL].anything:
                if slot not in taken and not slot.group:
                    yield slot.patterns[side].write({})
                continue
            for values in slot.patterns[OFFICIAL].instances(last):
                if not slot.group or slot.group.key(values) in groups:
                    yield slot.patterns[side].write(values)
