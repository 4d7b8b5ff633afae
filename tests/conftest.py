import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from exp.claims.fork_server import ForkServer
from tests.library import runner
from tests.library.copies import copies_train

# The first backward pass decides whether later ones are refused in forks: they are if there is a device with a queue of
# its own, and `FakeTensorMode`, by which networks are counted, makes PyTorch believe in one.
torch.ones(1, requires_grad=True).sum().backward()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of recorded vectors, DIR/<system>/*.safetensors or one system's files (default: tests/golden)",
    )


def forks(module: ModuleType) -> bool:
    """Whether a module of the tests runs commands by forking, itself or through a module of tests/library."""
    for value in vars(module).values():
        if value is runner.run or value is ForkServer:
            return True
        home = sys.modules.get(getattr(value, "__module__", None) or "")
        if home is not None and home is not module and home.__name__.startswith("tests.library.") and forks(home):
            return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Commands run in forked copies of this process, in which PyTorch refuses backward passes once it has run one."""
    first = {module: forks(module) for item in items if isinstance(module := getattr(item, "module", None), ModuleType)}
    items.sort(key=lambda item: not first.get(getattr(item, "module", None), False))


@pytest.fixture(scope="module", autouse=True)
def forked_copies_can_train(request: pytest.FixtureRequest) -> Iterator[None]:
    """Names the module that runs backward passes where it should only fork, rather than the many behind it."""
    yield
    if isinstance(request.module, ModuleType) and forks(request.module):
        assert copies_train(), "nothing trains in a copy of this process any more: put backward passes in another file"
