from pathlib import Path

import pytest

from tests.library import runner


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of recorded vectors, DIR/<system>/*.safetensors or one system's files (default: tests/golden)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Commands run in forked copies of this process, in which PyTorch refuses backward passes once it has run one."""

    def forks(item: pytest.Item) -> bool:
        return any(value is runner.run for value in vars(getattr(item, "module", item)).values())

    items.sort(key=lambda item: not forks(item))
