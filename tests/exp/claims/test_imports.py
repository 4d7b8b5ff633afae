"""The static import closure, on small packages written for the purpose."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from exp.claims.imports import Sources, find_sources

Write = Callable[..., Sources]


@pytest.fixture
def sources(tmp_path: Path) -> Write:
    """Writes modules, given by their dotted names, and reads them; every folder is a package."""

    def write(registered: Callable[[str], str | None] = lambda name: None, **texts: str) -> Sources:
        for name, text in texts.items():
            path = tmp_path.joinpath(*name.split("__"))
            file = path.with_name("__init__.py") if path.name == "init" else path.with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
            for folder in file.relative_to(tmp_path).parents:
                if folder.name:
                    (tmp_path / folder / "__init__.py").touch()
        places = {path.stem: path for path in tmp_path.iterdir()}
        return Sources(places.get, registered)

    return write


ZOO = {
    "zoo__init": "from zoo.cats import Cat\nfrom zoo.dogs import Dog\n__all__ = ['Cat', 'Dog']",
    "zoo__cats": "class Cat: pass",
    "zoo__dogs": "import torch\nclass Dog: pass",
}


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("import zoo.cats", ["zoo.cats"]),
        ("import zoo.cats as c", ["zoo.cats"]),
        ("from zoo import cats", ["zoo.cats"]),
        ("from zoo.cats import Cat", ["zoo.cats"]),
        ("from zoo import Cat", ["zoo.cats"]),
        ("import zoo", []),
        ("import zoo\nzoo.Dog()", ["zoo.dogs"]),
        ("import zoo as z\nz.Dog.bark()", ["zoo.dogs"]),
        ("import zoo\nprint(vars(zoo))", ["zoo.cats", "zoo.dogs"]),
        ("from zoo import *", ["zoo.cats", "zoo.dogs"]),
        ("from zoo import Bird", ["zoo.cats", "zoo.dogs"]),
        ("def later():\n    from zoo import Cat", ["zoo.cats"]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zoo import Cat", []),
        ("import torch, os.path", []),
    ],
)
def test_what_an_import_leads_to(sources: Write, text: str, modules: list[str]) -> None:
    assert list(sources(**ZOO, me=text).digests([("me", "")])) == ["me", *modules]


def test_relative_imports_and_chains(sources: Write) -> None:
    found = sources(
        a__b__c="from . import d\nfrom ..e import f",
        a__b__d="",
        a__e="from a.g import h as f",
        a__g="from a.b.c import something\nh = 1",
        a__unused="",
    )
    # Modules that import each other in a circle are read once; one without a statement has no text to change.
    assert list(found.digests([("a.b.c", "")])) == ["a.b.c", "a.e", "a.g"]


def test_the_own_statements_of_a_package_count_and_what_they_use(sources: Write) -> None:
    found = sources(
        zoo__init="import os\nfrom zoo.cats import Cat\nfrom zoo.dogs import Dog\nBEST = Dog()\n",
        zoo__cats="class Cat: pass",
        zoo__dogs="class Dog: pass",
        zoo__fish="x = 1",
    )
    assert list(found.digests([("zoo.fish", "")])) == ["zoo", "zoo.dogs", "zoo.fish"]
    assert list(found.digests([("zoo", "BEST")])) == ["zoo", "zoo.dogs"]
    assert list(sources(zoo__init="__version__ = '2.0'", zoo__fish="x = 1").digests([("zoo.fish", "")])) == ["zoo.fish"]


def test_a_command_that_lists_a_package_does_not_use_all_of_it(sources: Write) -> None:
    text = "import zoo\nfor name in zoo.__all__: getattr(zoo, name)"
    found = sources(**ZOO, exp__fit=text, me=text)
    assert list(found.digests([("exp.fit", "")])) == ["exp.fit"]
    assert list(found.digests([("me", "")])) == ["me", "zoo.cats", "zoo.dogs"]


def test_packages_that_hand_on_in_a_circle_end(sources: Write) -> None:
    found = sources(a__init="from a.b import X", a__b__init="from a import X", me="from a import X")
    assert list(found.digests([("me", "")])) == ["me"]


def test_a_network_named_as_timm_knows_it_counts(sources: Write) -> None:
    homes = {"tabby": "zoo.cats"}
    found = sources(homes.get, **ZOO, me="create_model('tabby')", other="create_model(f'tab{end}')")
    assert list(found.digests([("me", "")])) == ["me", "zoo.cats"]
    assert list(found.digests([("other", "")])) == ["other"]


REPORTS = {
    "callbacks__reports__init": "import pkgutil\nfrom callbacks.reports.base import Report\nkinds = [Report]",
    "callbacks__reports__base": "class Report:\n    def metrics(self): task.log(f'{split}/{name}', 1)",
    "callbacks__reports__exits": """
        from callbacks.reports.base import Report
        from zoo.dogs import Dog
        import drawing.bars
        class Exits(Report):
            def metrics(self): return {f'top1_at_{percent}': 1, 'auc': 2}
        """,
    "callbacks__reports__all_exits": "from callbacks.reports.exits import Exits",
    "callbacks__reports__table": "from zoo.cats import Cat\nrow = ['top1_at_50', 'auc']",
    "drawing__bars": "import zoo.cats",
    "me": "import drawing.bars",
}


@pytest.mark.parametrize("metric", ["top1_at_50", "auc"])
def test_a_report_that_logs_a_metric_is_found_and_those_made_of_it(sources: Write, metric: str) -> None:
    found = sources(**ZOO, **REPORTS)
    assert found.reports_that_log([metric]) == {"callbacks.reports.exits", "callbacks.reports.all_exits"}
    assert list(found.digests([("callbacks.reports.exits", "")])) == [
        "callbacks.reports",
        "callbacks.reports.base",
        "callbacks.reports.exits",
        "zoo.dogs",
    ]


def test_other_metrics_are_of_no_report(sources: Write) -> None:
    found = sources(**ZOO, **REPORTS)
    assert found.reports_that_log(["top1", "loss", "top1_at", "auc_anytime"]) == set()
    assert sources(**ZOO).reports_that_log(["top1"]) == set()


def test_a_drawing_does_not_count_nor_what_it_imports(sources: Write) -> None:
    assert list(sources(**ZOO, **REPORTS).digests([("me", "")])) == ["me"]


@pytest.mark.parametrize("text", ["module.log('auc', 1)", "module.log_dict({'auc': 1})", "def metrics(self): 'auc'"])
def test_ways_to_log(sources: Write, text: str) -> None:
    assert sources(callbacks__reports__one=text + "; 'auc'").reports_that_log(["auc"]) == {"callbacks.reports.one"}
    assert sources(callbacks__reports__one="math.log(2); 'auc'").reports_that_log(["auc"]) == set()


def test_reports_are_known_by_their_place(sources: Write) -> None:
    found = sources(**REPORTS, callbacks__init="from callbacks.reports.exits import Exits", callbacks__ema="")
    assert found.is_report(("callbacks", "Exits"))
    assert not found.is_report(("callbacks", "ema"))


def test_the_hash_is_of_what_the_text_does(sources: Write) -> None:
    def digest(text: str) -> str:
        return sources(me=text).digests([("me", "")])["me"]

    text = "def f(x: int) -> float:\n    return x * 2.0\n"
    assert digest(text) == digest(
        '"""Doubles."""\ndef f(x: int) -> float:  # twice\n\n    """Of x."""\n    return x*2.0'
    )
    assert digest(text) != digest(text.replace("2.0", "2.5"))
    assert digest(text) != digest(text.replace("x * 2.0", "x.real * 2.0"))
    assert digest("a = b.c") != digest("a = b.d")
    assert digest("if TYPE_CHECKING:\n    import a\n") != digest("import a\n")


def test_dotted_paths_lead_to_names_in_sources(sources: Write) -> None:
    found = sources(**ZOO)
    assert found.target("zoo.Cat") == ("zoo", "Cat")
    assert found.target("zoo.cats.Cat.purr") == ("zoo.cats", "Cat.purr")
    assert found.target("torch.optim.AdamW") is None
    assert found.target("configs/zoo.yaml") is None
    assert found.target("zoo") is None


def test_libraries_are_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_sources("my_networks") == tmp_path / "my_networks.py"
    assert find_sources("models") == Path(sys.modules["models"].__path__[0])
    # An environment that lies on top of another one finds libraries there, too.
    below = tmp_path / "lib" / "site-packages"
    below.mkdir(parents=True)
    (below / "their_networks.py").write_text("")
    monkeypatch.syspath_prepend(below)
    assert find_sources("their_networks") is None
    assert all(find_sources(name) is None for name in ("torch", "json", "sys", "no_such_module"))


def test_a_folder_that_a_module_left_behind_is_not_the_module(sources: Write, tmp_path: Path) -> None:
    found = sources(zoo__cats="x = 1")
    (tmp_path / "zoo/cats/__pycache__").mkdir(parents=True)
    assert list(found.digests([("zoo.cats", "")])) == ["zoo.cats"]
