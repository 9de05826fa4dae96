"""From a trained student to one ONNX file: any batch, height and width, or of a detector any batch of its frames.

`torch.onnx.export(dynamo=True)` is the only way used: with the axes declared dynamic it refuses a network whose code
fixes one of them, where tracing would freeze the value of the example silently.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewlabel.core.errors import ExportError
from fewlabel.core.files import write_bytes
from fewlabel.core.types import STANDARD
from fewlabel.deploy.runtime import BOXES, INPUT, OUTPUT, ModelInfo, preparation
from fewlabel.students.detector.network import Detector, exportable
from fewlabel.training.checkpoint import weights_sha256

OPSET = 18  # what torch's exporter writes natively; ONNX Runtime reads it since 1.14
AXES = {0: "batch", 2: "height", 3: "width"}
BATCH = {0: "batch"}  # the free axis of a detector
EXAMPLE = (2, 1, 72, 104)  # a batch of 1 would be specialised; height and width differ so that no two axes are tied


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of a network on the CPU, in evaluation mode and without gradients; the original is not touched."""
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def export_student(
    model: nn.Module,
    path: Path,
    *,
    name: str,
    metadata: Mapping[str, Any],
) -> Path:
    """Write a student as ONNX (opset 18), with all that prediction needs in its metadata.

    The file has one input, `image`: float32 `(batch, 1, height, width)` standardised; and one output, `logits`, of the
    same shape. That of a detector takes frames `(batch, 1, F, F)` and has two outputs, `boxes` `(batch, Q, 4)` and
    `logits` `(batch, Q)`. Equal weights give equal bytes.

    Args:
        model: Maps `(B, 1, H, W)` to logits `(B, 1, H, W)` for any size, or is a `Detector`; left as it is.
        path: The `.onnx` file; replaced atomically.
        name: Name of the model.
        metadata: JSON values to record: `student`, the name of the architecture (default: `name`), `threshold`
            (default 0.5), `classes` (default `["target"]`) and `radiometry`, a `fewlabel.core.radiometry.Radiometry`
            (default: its standard policy); all others are kept under `fewlabel.extra`.

    Returns:
        `path`.

    Raises:
        ExportError: The network cannot be exported with dynamic axes.
        ModelError: The threshold or the classes make no sense.
    """
    extra = dict(metadata)
    frame = model.frame if isinstance(model, Detector) else None
    info = ModelInfo(
        name=name,
        student=str(extra.pop("student", name)),
        threshold=float(extra.pop("threshold", 0.5)),
        classes=tuple(extra.pop("classes", ("target",))),
        version=version("fewlabel"),
        weights_sha256=weights_sha256(model),
        preprocessing=preparation(extra.pop("radiometry", STANDARD), frame),
        extra=extra,
        frame=frame,
    )
    network = frozen_copy(model)
    axes = AXES if frame is None else BATCH
    try:
        with _quiet(), torch.no_grad():
            program = _of_masks(network) if frame is None else _of_boxes(network, frame)
    except Exception as error:
        # The exporter's own text is advice on its steps; what went wrong is in the exception behind it.
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        free = "batch, height and width" if frame is None else "batch"
        raise ExportError(
            f"Student {name!r} cannot be exported to {path} with dynamic {free} ({reason}); its"
            " forward pass must not branch on the size of its input."
        ) from error
    write_bytes(path, _finish(program.model_proto, info, axes))
    return path


def _of_masks(network: nn.Module) -> Any:
    """Export a student that gives masks."""
    return torch.onnx.export(
        network,
        (torch.zeros(EXAMPLE),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=(dict.fromkeys(AXES, torch.export.Dim.DYNAMIC),),
        opset_version=OPSET,
        verbose=False,
    )


def _of_boxes(network: nn.Module, frame: int) -> Any:
    """Export a detector on frames of that many pixels."""
    example = (torch.zeros(2, 1, frame, frame),)
    with exportable():
        # Python's own `len` of a tensor, which the library takes, is a fixed number to all but the strict tracing.
        shapes = (dict.fromkeys(BATCH, torch.export.Dim.DYNAMIC),)
        traced = torch.export.export(network, example, dynamic_shapes=shapes, strict=True)
        return torch.onnx.export(
            traced,
            example,
            dynamo=True,
            input_names=[INPUT],
            output_names=[BOXES, OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )


def _finish(proto: Any, info: ModelInfo, axes: Mapping[int, str]) -> bytes:
    """Name the axes, drop what the exporter noted for debugging (paths of this machine among it), add the metadata."""
    import onnx

    graph = proto.graph
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for value in (*graph.input, *graph.output):
        for axis, label in axes.items():
            value.type.tensor_type.shape.dim[axis].dim_param = label
    onnx.helper.set_model_props(proto, info.to_properties())
    proto.producer_name, proto.producer_version = "fewlabel", info.version
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes on packages that are not installed and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
