"""A trained model as one graph for other runtimes: ``torch.export``, and ONNX from it."""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .models.cropr_vit import find_backbone, fold_scorers
from .utils.checks import check_suffix
from .utils.io import whole_file

SUFFIXES = ('.pt2', '.onnx')
OUTPUTS = ('labels', 'logits')
OLDEST = '2.9.0'
"""The oldest PyTorch that exports are meant for. 2.13 is what they are tested with."""
TOLERANCE = 1e-4
"""Difference to the model itself from which a value counts as another, as a share of the largest value."""
SHARE = 1e-3
"""Share of the values that may be others: where two scores are equal up to rounding, one of two tokens is pruned."""
_LEAVE_OUT = (
    'a head that loops over images, reads values, or counts on one size where sizes are open, has to be left out: '
    'export the backbone and the neck, and run the head in PyTorch'
)


class Exportable(nn.Module):
    """From images as they are loaded to what the model says of them, in tensors alone.

    Segmentors give maps of the size of the images: ``labels`` (B, H, W) int64, or ``logits`` (B, C, H, W). All other
    models give what their head computes before its post-processing, which needs operations (NMS, loops over images)
    whose shapes depend on the data: of a one-stage detector the maps of its head, of a two-stage detector the levels
    of the pyramid and the maps of its RPN, of a classifier the logits (B, C).

    Args:
        model: of a config; put into evaluation mode, its scorers folded.
        output: of a segmentor, one of :data:`OUTPUTS`.

    Attributes:
        kind: ``'segmentor'``, ``'two-stage'``, or the attribute that holds the head: ``'bbox_head'``, ``'head'``.

    Raises:
        ValueError: a model of another kind, or an output that is unknown.
    """

    def __init__(self, model: nn.Module, output: str = 'labels') -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f'output={output!r}; one of {", ".join(OUTPUTS)} is expected')
        self.kind = _kind_of(model)
        self.model, self.output = model, output
        fold_scorers(model)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) float32 from 0 to 255, channels in the order in which mmcv loads them (BGR)."""
        model: Any = self.model
        x = _normalise(model.data_preprocessor, images)
        if self.kind == 'segmentor':
            size = dict.fromkeys(('img_shape', 'pad_shape', 'ori_shape'), tuple(images.shape[2:]))
            logits = model.encode_decode(x, [size])
            return (logits if self.output == 'logits' else _labels(model, logits),)
        features = model.extract_feat(x)
        if self.kind == 'two-stage':
            return (*_flat(features), *_flat(model.rpn_head(features)))
        return tuple(_flat(getattr(model, self.kind)(features)))


def _kind_of(model: nn.Module) -> str:
    if hasattr(model, 'encode_decode'):
        return 'segmentor'
    if getattr(model, 'with_rpn', False) and hasattr(model, 'roi_head'):
        return 'two-stage'
    for name in ('bbox_head', 'head'):
        if isinstance(getattr(model, name, None), nn.Module) and hasattr(model, 'extract_feat'):
            return name
    raise ValueError(
        f'{type(model).__name__}: segmentors, detectors with bbox_head or with rpn_head and roi_head, and classifiers '
        'can be exported; of other models export the backbone and the neck by torch.export'
    )


def _normalise(preprocessor: Any, images: Tensor) -> Tensor:
    """What the data preprocessors of mmengine, mmsegmentation and mmpretrain do, on a batch of one size."""
    if any(getattr(preprocessor, key, False) for key in ('_channel_conversion', 'channel_conversion', 'to_rgb')):
        images = images.flip(1)
    if getattr(preprocessor, '_enable_normalize', False):
        images = (images - preprocessor.mean) / preprocessor.std
    return images


def _labels(model: Any, logits: Tensor) -> Tensor:
    if logits.shape[1] > 1:
        return logits.argmax(dim=1)
    return (logits[:, 0].sigmoid() > model.decode_head.threshold).long()


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if not isinstance(outputs, (list, tuple)):  # mmdetection's heads say None for what they do not have
        return []
    return [tensor for part in outputs for tensor in _flat(part)]


class Exported(NamedTuple):
    """What a file was compared with the model by.

    Attributes:
        operators: names, sorted.
        difference: largest difference of a value, as a share of the largest value of its output.
        share: of the values that differ by more than :data:`TOLERANCE`.
    """

    operators: list[str]
    difference: float
    share: float


def export(model: Exportable, images: Tensor, out: str | Path, open_size: bool = False) -> Exported:
    """Write a model as ``.pt2`` or ``.onnx`` for images of this size, or of any, in batches of any size.

    The file is loaded, run on ``images``, on other ones and on a batch of another size, with ``open_size`` also on
    images of another size, and stands only where it says what the model says.

    Args:
        model: the model.
        images: (B, 3, H, W) float32 from 0 to 255.
        out: file to write.
        open_size: whether H and W may be others, from two patches on. Otherwise they stay.

    Returns:
        How well it agrees with the model.

    Raises:
        ValueError: another suffix; something in the model cannot be exported, or for one size alone; or the file says
            something else.
        ModuleNotFoundError: what ONNX needs is not installed.
    """
    out = check_output(out)
    program = _program(model, images, open_size)
    with whole_file(out) as partial:
        operators = (_write_onnx if out.suffix == '.onnx' else _write_pt2)(program, partial)
        difference, share = compare(model, load_export(partial).run, images, open_size)
        if not share <= SHARE:
            raise ValueError(
                f'{out}: {share:.2%} of the values differ from those of the model (at most {SHARE:.1%} is allowed, for '
                f'equal scores), the largest by {difference:.2g} of the largest value; nothing was written'
            )
    return Exported(operators, difference, share)


class Loaded(NamedTuple):
    """A file that :func:`export` wrote.

    Attributes:
        run: takes images (B, 3, H, W) float32 from 0 to 255, gives the outputs.
        size: H and W; None where any will do.
    """

    run: Callable[[Tensor], Sequence[Tensor]]
    size: tuple[int | None, ...]


def load_export(file: str | Path) -> Loaded:
    """Load a file that :func:`export` wrote: ``.onnx`` into ONNX Runtime on the CPU, ``.pt2`` into PyTorch.

    Raises:
        ValueError: another suffix, or the file is damaged or was never one.
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    file = check_suffix(file, SUFFIXES, 'file')
    runtime = _import('onnxruntime') if file.suffix == '.onnx' else None
    try:
        if runtime is not None:
            return _load_onnx(file, runtime)
        with zipfile.ZipFile(file):  # PyTorch would log a traceback
            return _load_pt2(file)
    except Exception as error:  # each reader has its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f'{file}: damaged, cut short or never a {file.suffix} file ({reason})') from error


def check_output(out: str | Path) -> Path:
    """The file to write, of a format that can be written here.

    Raises:
        ValueError: another suffix, or PyTorch is too old.
        ModuleNotFoundError: what ONNX needs is not installed.
    """
    if digit_version(torch.__version__) < digit_version(OLDEST):
        raise ValueError(f'torch={torch.__version__}; {OLDEST} or newer is expected to export a model')
    out = check_suffix(out, SUFFIXES, 'out')
    if out.suffix == '.onnx':
        for name in ('onnx', 'onnxscript', 'onnxruntime'):
            _import(name)
    return out


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'.onnx needs {name}: pip install onnx onnxscript onnxruntime') from error


def _program(model: Exportable, images: Tensor, open_size: bool) -> Any:
    # A batch of one would be exported as one for ever.
    example = images.repeat(2, 1, 1, 1)[: max(2, images.shape[0])]
    dim: Any = torch.export.Dim  # since PyTorch 2.2
    sizes = {0: dim('batch', min=1)}
    if open_size:
        least = 2 * _check_open_size(model.model)
        sizes.update({2: dim('height', min=least), 3: dim('width', min=least)})
    with torch.no_grad():
        model(example)  # what is wrong with the model itself is said by itself
        try:
            return torch.export.export(model, (example,), dynamic_shapes=(sizes,))  # since PyTorch 2.2
        except Exception as error:  # whatever torch's tracer meets in a head
            raise ValueError(
                f'torch.export cannot follow {type(model.model).__name__} ({_first_line(error)}); {_LEAVE_OUT}'
            ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_open_size(model: Any) -> int:
    """The patch size of a model whose images may be of any size."""
    backbone = find_backbone(model)
    if backbone.window_size is not None:
        raise ValueError(
            f'open_size=True with window_size={backbone.window_size}; a model with windows is exported for images of '
            'one size'
        )
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') == 'slide':
        raise ValueError(
            f"open_size=True with test_cfg.mode='slide'; the graph is one window, and all windows have one size, "
            f'{test_cfg.get("crop_size")}'
        )
    return backbone.patch_size


def _write_pt2(program: Any, file: Path) -> list[str]:
    buffer = io.BytesIO()  # on a full disk the writer would end the process
    torch.export.save(program, buffer)
    file.write_bytes(buffer.getvalue())
    return sorted({str(node.target) for node in program.graph.nodes if node.op == 'call_function'})


def _load_pt2(file: Path) -> Loaded:
    program = torch.export.load(file)  # since PyTorch 2.1
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    return Loaded(program.module(), _sides(images.meta['val'].shape))


def _write_onnx(program: Any, file: Path) -> list[str]:
    try:
        table = {torch.ops.aten.sort.stable: _sort, torch.ops.aten._upsample_bicubic2d_aa.default: _resize}
        options: dict[str, Any] = dict(dynamo=True, custom_translation_table=table)
        exported: Any = torch.onnx.export(program, input_names=['images'], verbose=False, **options)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f'ONNX has no form of this model: {_first_line(error)}') from error
    exported.save(file)
    return sorted({node.op_type for node in exported.model.graph.all_nodes()})


def _sort(values: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort as ONNX's TopK, which gives of equal values the one before first."""
    op = _import('onnxscript').opset18
    count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)


def _resize(values: Any, size: Any, align_corners: bool, scales_h: Any = None, scales_w: Any = None) -> Any:
    """A bicubic resizing with antialiasing as two matrix products: TensorRT's Resize is linear at most."""
    op = _import('onnxscript').opset18
    rows, columns = (_cubic(op, old, new) for old, new in zip(values.shape[2:], size))
    return rows @ values @ op.Transpose(columns, perm=[1, 0])


def _cubic(op: Any, old: int, new: Any) -> Any:
    """Weights (new, old) of the cells of a side, for each cell of another side (Keys' cubic with a = -0.5)."""
    float32 = 1  # of ONNX's data types
    count = op.Cast(new, to=float32)
    centre = (op.Cast(op.Range(0, new, 1), to=float32) + 0.5) * float(old) / count
    cells = op.Constant(value_floats=[cell + 0.5 for cell in range(old)])
    x = op.Abs(cells - op.Unsqueeze(centre, [1])) * op.Min(count / float(old), 1.0)
    near, far = (x * 1.5 - 2.5) * x * x + 1.0, ((x * -0.5 + 2.5) * x - 4.0) * x + 2.0
    weights = op.Where(x < 1.0, near, op.Where(x < 2.0, far, 0.0))
    return weights / op.ReduceSum(weights, [1], keepdims=1)


def _load_onnx(file: Path, runtime: Any) -> Loaded:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    (given,) = session.get_inputs()

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {given.name: images.numpy()})]

    return Loaded(run, _sides(given.shape))


def _sides(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) else None for side in shape[-2:])


@torch.no_grad()
def compare(
    model: Exportable, other: Callable[[Tensor], Sequence[Tensor]], images: Tensor, open_size: bool = False
) -> tuple[float, float]:
    """Largest difference, and share of the values that differ, over several batches; see :class:`Exported`.

    Raises:
        ValueError: what was exported fails on one of them.
    """
    largest, differing, values = 0.0, 0, 0
    for batch in _batches(images, open_size):
        expected = model(batch)
        try:
            found = other(batch)
        except Exception as error:  # whatever a runtime makes of a size
            raise ValueError(
                f'what was exported of {type(model.model).__name__} fails on images {tuple(batch.shape)} '
                f'({_first_line(error)}); {_LEAVE_OUT}'
            ) from error
        if [e.shape for e in expected] != [f.shape for f in found]:
            return float('inf'), 1.0
        for a, b in zip(expected, found):
            difference = (a.double() - b.double()).abs() / max(1.0, float(a.abs().max()))
            largest = max(largest, float(difference.max()))
            differing += int((~(difference <= TOLERANCE)).sum())
            values += difference.numel()
    return largest, differing / values


def _batches(images: Tensor, open_size: bool) -> Iterator[Tensor]:
    """The images; one alone; three, of which one is upside down, one brighter, and one partly padded; other sizes."""
    yield images
    yield images[:1]
    padded = images[0].clone()
    padded[:, :, images.shape[3] * 3 // 4 :] = 0
    yield torch.stack([images[-1].flip(1), (images[0] * 1.2).clamp(max=255), padded])
    if open_size:
        height, width = images.shape[2:]
        yield interpolate(images, (height * 5 // 4, width * 3 // 4), mode='bilinear')
