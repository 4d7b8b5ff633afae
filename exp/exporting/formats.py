"""Files that hold a network: how each format is written, read and run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from exp.exporting.graph import INPUT, Graph, plain_attention, reason_of
from exp.usage import UsageError
from lightning_modules.exporting import Answer
from models.mistakes import Mistake

# Where a file says what it is.
KEY = "exp"
EXTRA = "pip install 'exp[export]'"


@dataclass(frozen=True)
class Manifest:
    """What a file says of its network.

    Args:
        config: the run's resolved config, as YAML.
        class_names: of the classes, or of what else the network tells apart.
        outputs: names of the outputs, in their order.
        size: height and width of the images that it takes; None for any.
        any_batch: whether it takes several images at once.
        pixels: how images are normalised, which the file does itself.
        notes: what else a task's predictions need, such as thresholds of exits.
    """

    config: str
    class_names: list[str]
    outputs: list[str]
    size: tuple[int, int] | None
    any_batch: bool
    pixels: Mapping[str, Any]
    notes: Mapping[str, Any]

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, path: Path, text: str | None) -> Manifest:
        """Of the text in a file.

        Raises:
            Mistake: there is none, or it is not one of these.
        """
        try:
            manifest = cls(**json.loads(text or ""))
        except (ValueError, TypeError, RecursionError):
            raise Mistake(
                f"{path} is no file that `exp export` wrote: it does not say which network it holds; write it anew"
            ) from None
        size = manifest.size
        return manifest if size is None else Manifest(**asdict(manifest) | {"size": (int(size[0]), int(size[1]))})


class Runner(ABC):
    """A file that is open to be asked.

    Args:
        path: the file.
    """

    suffix: ClassVar[str]
    # The package that it takes, beside torch.
    needs: ClassVar[str | None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest.read(path, self.open())

    @abstractmethod
    def open(self) -> str | None:
        """Opens the file; returns what it says of itself."""

    @abstractmethod
    def run(self, images: Tensor) -> list[Tensor]:
        """The outputs for images float32 [B, 3, H, W], RGB from 0 to 255."""

    @staticmethod
    @abstractmethod
    def write(graph: Graph, images: Tensor, manifest: Manifest, path: Path) -> None:
        """Writes a graph.

        Args:
            graph: the network.
            images: an example.
            manifest: what the file is to say.
            path: the file.

        Raises:
            Mistake: the format has nothing for a part of it.
        """

    def __call__(self, images: Tensor) -> Answer:
        """What the file says of images, by name.

        Raises:
            Mistake: they are not of the size, or not the number, that it takes.
        """
        size, given = self.manifest.size, (images.shape[2], images.shape[3])
        if size is not None and given != size:
            raise Mistake(
                f"{self.path} takes images of {size[0]}x{size[1]} pixels (height x width), not of {given[0]}x{given[1]}"
            )
        if len(images) != 1 and not self.manifest.any_batch:
            raise Mistake(f"{self.path} takes one image at a time, not {len(images)}")
        try:
            return dict(zip(self.manifest.outputs, self.run(images), strict=True))
        except Exception as error:
            raise Mistake(f"{self.path} does not run on images {list(images.shape)}: {reason_of(error)}") from error


class OnnxFile(Runner):
    """An ONNX model, run by onnxruntime on the CPU."""

    suffix = ".onnx"
    needs = "onnxruntime"

    @override
    def open(self) -> str | None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise Mistake(f"{self.path}: onnxruntime cannot open it: {reason_of(error)}") from error
        return self._session.get_modelmeta().custom_metadata_map.get(KEY)

    @override
    def run(self, images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in self._session.run(None, {INPUT: images.numpy()})]

    @staticmethod
    @override
    def write(graph: Graph, images: Tensor, manifest: Manifest, path: Path) -> None:
        import onnx

        with _quietly(), plain_attention():
            try:
                program = torch.onnx.export(
                    graph.program,
                    (images,),
                    input_names=[INPUT],
                    output_names=graph.names,
                    dynamo=True,
                    verbose=False,
                )
            except Exception as error:
                raise Mistake(f"ONNX has nothing for {_node(error, graph)}") from error
        assert program is not None
        model = _with_names(program.model_proto, graph)
        onnx.helper.set_model_props(model, {KEY: manifest.text(), **readable_properties(manifest)})
        path.write_bytes(model.SerializeToString())


class TorchFile(Runner):
    """A program of torch.export."""

    suffix = ".pt2"

    @override
    def open(self) -> str | None:
        texts = {KEY: ""}
        try:
            with _quietly():
                program = torch.export.load(self.path, extra_files=texts)
        except Exception as error:
            raise Mistake(f"{self.path}: torch.export cannot open it: {reason_of(error)}") from error
        self._module = program.module()
        return texts[KEY]

    @override
    def run(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self._module(images))

    @staticmethod
    @override
    def write(graph: Graph, images: Tensor, manifest: Manifest, path: Path) -> None:
        with _quietly():
            torch.export.save(graph.program, path, extra_files={KEY: manifest.text()})


FORMATS: dict[str, type[Runner]] = {"onnx": OnnxFile, "torch": TorchFile}


def runner_of(path: Path) -> type[Runner]:
    """What runs a file, by its ending.

    Raises:
        Mistake: nothing does, or a package is missing.
    """
    for kind in FORMATS.values():
        if path.suffix == kind.suffix:
            check_installed(kind)
            return kind
    endings = ", ".join(kind.suffix for kind in FORMATS.values())
    raise Mistake(f"{path}: a file of `exp export` ends in {endings}")


def config_in(path: Path) -> str:
    """The config of the run that a file is of, as YAML.

    Raises:
        UsageError: there is no such file, or `export` did not write it.
    """
    try:
        if not path.is_file():
            raise Mistake(f"--runtime {path}: no such file; `exp export RUN` writes one")
        return runner_of(path)(path).manifest.config
    except Mistake as error:
        raise UsageError(str(error)) from error


def check_installed(kind: type[Runner], *more: str) -> None:
    """Whether the packages of a format are there.

    Raises:
        Mistake: one is not; the message says how it comes.
    """
    for name in (kind.needs, *more):
        if name is not None and importlib.util.find_spec(name) is None:
            raise Mistake(f"a file *{kind.suffix} needs the package {name}: {EXTRA}")


def readable_properties(manifest: Manifest) -> dict[str, str]:
    """What people and other programs look for among the properties of a model."""
    return {
        "class_names": json.dumps(manifest.class_names),
        "input": "float32 [batch, 3, height, width], RGB from 0 to 255; normalisation is inside",
        "pixels": json.dumps(dict(manifest.pixels)),
        **{name: json.dumps(value) for name, value in manifest.notes.items()},
    }


def _with_names(model: Any, graph: Graph) -> Any:
    """The model, whose free sides have the names of what they are."""
    placeholder = next(node for node in graph.program.graph.nodes if node.op == "placeholder" and node.name == INPUT)
    sides = dict(zip(("batch", "channels", "height", "width"), placeholder.meta["val"].shape, strict=True))
    names = {str(side): name for name, side in sides.items() if not isinstance(side, int)}
    if not names:
        return model
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = pattern.sub(lambda match: names[match[0]], side.dim_param)
    return model


def _node(error: BaseException, graph: Graph) -> str:
    """The operator that a translation stopped at, and the part of the network that it is of."""
    text = str(error)
    operator = re.search(r"target=(?:torch\.ops\.)?([\w.]+)", text)
    if operator is None:
        return f"a part of the network: {reason_of(error)}"
    named = re.search(r"(?:node|executing) %(\w+)", text)
    nodes = [node for node in graph.program.graph.nodes if named is not None and node.name == named[1]]
    stack = list(nodes[0].meta.get("nn_module_stack", {}).values()) if nodes else []
    return operator[1] + (f" in {str(stack[-1][0]).removeprefix('task.')}" if stack else "")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what exporters print of their own progress."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
