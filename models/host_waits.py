"""How often the host waits for a device, counted on any device: what would stall a GPU shows on a CPU, too."""

from collections import Counter
from types import TracebackType
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that need a value, or the number of values, from the device before the host goes on. Bincount asks for the
# largest.
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "unique_dim", "bincount")
# Methods that bring all of a tensor to the host, and what on a CPU checks values that a GPU does not look at.
_FETCHING, _CHECKING = ("tolist", "numpy", "cpu"), ("one_hot",)


class HostWaits:
    """Counts, while it is entered, what the host waits for a device for.

    `tolist`, `numpy` and `cpu` count as one wait each, of tensors that `cpu` returned as none, wherever they lie.

    Attributes:
        seen: How often each operator or method was waited for.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.quiet = False
        self._modes = (_Functions(self), _Operators(self))

    @property
    def total(self) -> int:
        """How often the host waited."""
        return self.seen.total()

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Functions(TorchFunctionMode):
    def __init__(self, owner: HostWaits) -> None:
        super().__init__()
        self.owner = owner
        # Held, so that no other tensor gets their identity.
        self.on_host: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _FETCHING + _CHECKING:
            return func(*args, **(kwargs or {}))
        if name in _FETCHING and id(args[0]) not in self.on_host:
            self.owner.seen[name] += 1
        self.owner.quiet = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.owner.quiet = False
        if name == "cpu":
            self.on_host[id(result)] = result
        return result


class _Operators(TorchDispatchMode):
    def __init__(self, owner: HostWaits) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if not self.owner.quiet and (name in _WAITING or _masked(name, args) or _repeats(func, kwargs)):
            self.owner.seen[name] += 1
        return func(*args, **(kwargs or {}))


def _masked(name: str, args: Any) -> bool:
    """Indexing by a mask, whose true entries are counted; writing one value where a mask is true needs no count."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    by_mask = any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    return by_mask and (name == "index" or args[2].numel() != 1)


def _repeats(func: Any, kwargs: Any) -> bool:
    """Repeats by a tensor, of a total that is not told."""
    return str(func) == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None
