"""Pickles read without executing them: tensors, arrays, containers and namespaces are built, and nothing else.

A pickle is a program for a small machine, and Python's machine calls whatever a program names. This one knows no
callables at all: a name in a file is a `Name`, what it knows to build from a name stands in `exp.pickled.BUILDERS`, and
everything else becomes a `Record`, which holds what the file says of the object and does nothing.
"""

from __future__ import annotations

import pickletools
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from exp.pickled import (
    BUILDERS,
    DTYPES,
    Array,
    Dtype,
    Name,
    PickleError,
    Record,
    array_of_state,
    plain_key,
    tensor,
)


def unpickle(
    stream: Any, persistent: Callable[[Any], Any] | None = None, nested: Callable[[bytes], Any] | None = None
) -> Any:
    """Reads one pickle.

    Args:
        stream: Open file, at the pickle's beginning; left right behind its end.
        persistent: Gives what a persistent id stands for; without it there may be none.
        nested: Reads a file that is inside the pickle.

    Returns:
        The object: tensors, dictionaries, lists and the like as they are, arrays of numbers as tensors, numpy's scalars
        as Python's, `Namespace` and paths, and a `Record` of everything else.

    Raises:
        PickleError: It is torn, or says what cannot be.
    """
    machine = _Machine(persistent, nested)
    try:
        for code, argument, _ in pickletools.genops(stream):
            if code.name == "STOP":
                return machine.stack.pop()
            machine.step(code.name, argument)
    except PickleError:
        raise
    # What a torn program leads to: no bytes, an empty stack, an unknown place, a text that is no text.
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError) as error:
        raise PickleError("no whole pickle") from error
    raise PickleError("no whole pickle")


class _Machine:
    """The stack, the memory and the instructions of a pickle."""

    def __init__(self, persistent: Callable[[Any], Any] | None, nested: Callable[[bytes], Any] | None) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # Where what may be replaced by something else, once its state has come, is remembered.
        self.places: dict[int, list[int]] = {}
        self.persistent = persistent
        self.builders = dict(BUILDERS)
        if nested is not None:
            self.builders["torch.storage._load_from_bytes"] = nested

    def step(self, code: str, argument: Any) -> None:
        """Does one instruction."""
        if code in _IGNORED:
            return
        if code in _CONSTANTS:
            self.stack.append(_CONSTANTS[code]())
        elif code in _LITERALS:
            self.stack.append(argument)
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif code in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._remember(len(self.memo) if code == "MEMOIZE" else int(argument))
        elif (do := getattr(self, f"_{code.lower()}", None)) is not None:
            do(argument)
        else:
            raise PickleError(f"an instruction that is not read, {code}")

    def _remember(self, place: int) -> None:
        top = self.stack[-1]
        self.memo[place] = top
        if isinstance(top, Array | Record):
            self.places.setdefault(id(top), []).append(place)

    def _replace(self, new: Any) -> None:
        for place in self.places.pop(id(self.stack[-1]), ()):
            self.memo[place] = new
        self.stack[-1] = new

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.below.pop()
        return above

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._to_mark()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: Any) -> None:
        above = self._to_mark()
        self.stack.append(tuple(above))

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: Any) -> None:
        above = self._to_mark()
        self.stack.append(above)

    def _dict(self, _: Any) -> None:
        above = self._to_mark()
        self.stack.append({})
        self._set_items(above)

    def _frozenset(self, _: Any) -> None:
        above = self._to_mark()
        self.stack.append(frozenset(map(plain_key, above)))

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _additems(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(plain_key, values))
        elif isinstance(target, list | Record):
            (target.elements if isinstance(target, Record) else target).extend(values)
        else:
            raise PickleError(f"something appended to a {type(target).__name__}")

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: Any) -> None:
        self._set_items(self._to_mark())

    def _set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Record):
            raise PickleError(f"something put into a {type(target).__name__} by key")
        items = target.items if isinstance(target, Record) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[plain_key(key)] = value

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("a name that is no text")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        found = Name(_RENAMED.get(module, module), name)
        self.stack.append(DTYPES.get(str(found), found))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        arguments = tuple(self._to_mark())
        self._push_name(module, name)
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def _obj(self, _: Any) -> None:
        kind, *arguments = self._to_mark()
        self.stack.append(self._made(kind, tuple(arguments)))

    def _reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        options, arguments = self.stack.pop(), self.stack.pop()
        self.stack[-1] = Record(str(self.stack[-1]), (*arguments, options))

    def _made(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(kind, Name | Record) or not isinstance(arguments, tuple):
            raise PickleError(f"a call of what is no class and no function, a {type(kind).__name__}")
        if str(kind) in ("copyreg._reconstructor", "copyreg.__newobj__") and arguments:
            # How old pickles say that an object of a class is to be made.
            if str(kind) == "copyreg.__newobj__":
                return self._made(arguments[0], arguments[1:])
            made = self._made(arguments[0], ())
            if isinstance(made, Record) and isinstance(arguments[-1], dict):
                made.items = arguments[-1]
            return made
        if str(kind) == "torch._tensor._rebuild_from_type_v2":
            return self._made(arguments[0], arguments[2])
        build = self.builders.get(str(kind))
        try:
            return Record(str(kind), arguments) if build is None else build(*arguments)
        except TypeError:
            if str(kind).startswith(("torch.", "numpy.")):
                raise
            # A container of what is not built.
            return Record(str(kind), arguments)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, Array):
            self._replace(array_of_state(*state))
        elif isinstance(made, Dtype):
            made.order = state[1]
            if state[3] is not None:
                made.code = "V"
        elif isinstance(made, Namespace):
            vars(made).update({str(name): value for name, value in state.items()})
        elif isinstance(made, OrderedDict):
            versions = state.get("_metadata") if isinstance(state, Mapping) else None
            if isinstance(versions, Mapping) and all(isinstance(each, Mapping) for each in versions.values()):
                made._metadata = versions  # type: ignore[attr-defined]
        elif isinstance(made, Record) and re.fullmatch(r"torch(\.cuda)?\.\w+Tensor", made.kind):
            # A tensor of the first versions of torch.
            self._replace(tensor(*state))
        elif isinstance(made, Record):
            made.state = state
        elif not isinstance(made, Tensor | dict):
            raise PickleError(f"attributes of a {type(made).__name__}")

    def _persid(self, argument: str) -> None:
        self.stack.append(argument)
        self._binpersid(None)

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise PickleError("a reference to something that is not in the file")
        self.stack[-1] = self.persistent(self.stack[-1])


# Names of Python 2.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_IGNORED = {"PROTO", "FRAME", "READONLY_BUFFER"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
