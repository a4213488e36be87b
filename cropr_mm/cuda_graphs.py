"""CUDA graphs at inference: one launch for a whole backbone in place of one for each operation."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from .models.plain_vit import PlainViT
from .tokens import SparseFeature
from .utils.checks import check_integer
from .utils.compat import autocast_dtype, is_compiling


def record(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a call on the current CUDA device as a graph, after three calls that warm up.

    Returns:
        What replays it, and the result of the call, which each replay overwrites.

    Raises:
        RuntimeError: the call waits for the device, or its shapes depend on the data.
    """
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
    return graph.replay, result


def use_cuda_graphs(model: nn.Module, most: int = 8) -> None:
    """Let the ViTs inside a model run as CUDA graphs at inference; neck and heads run as they did.

    The first images of a shape are recorded, later ones replay that. Training, autocast, calls that need a gradient
    and CPUs run as before. Other weights in the same place (``load_state_dict``), another dtype, device or schedule
    are noticed.

    Args:
        model: with a :class:`~cropr_mm.PlainViT` or :class:`~cropr_mm.CroprViT`, or one itself.
        most: shapes that are kept at a time, each with its own memory; above, the one recorded first is dropped.

    Raises:
        ValueError: the model has no such ViT.
    """
    check_integer('most', most)
    vits = [module for module in model.modules() if isinstance(module, PlainViT)]
    if not vits:
        raise ValueError(f'{type(model).__name__} has no CroprViT or PlainViT to record')
    for vit in vits:
        vit.forward = GraphedForward(vit, most)  # type: ignore[method-assign]


class GraphedForward:
    """The forward of a ViT, recorded once for each shape of images.

    Args:
        vit: the ViT.
        most: see :func:`use_cuda_graphs`.

    Attributes:
        recorded: what is kept, by what it was recorded for.
    """

    def __init__(self, vit: PlainViT, most: int) -> None:
        self.vit, self.most = vit, most
        self.recorded: dict[Any, tuple[Tensor, Callable[[], None], tuple[SparseFeature, ...]]] = {}

    def __call__(self, images: Tensor) -> tuple[SparseFeature, ...]:
        """As :meth:`PlainViT.forward`."""
        forward = type(self.vit).forward
        if not self._fits(images):
            return forward(self.vit, images)
        weight = next(self.vit.parameters())
        where = (images.device, images.dtype, tuple(images.shape), weight.dtype, weight.data_ptr())
        key = (*where, getattr(self.vit, 'schedule', None))
        with torch.cuda.device(images.device):
            if key not in self.recorded:
                with torch.inference_mode(False), torch.no_grad():
                    given = images.clone()
                    self.recorded[key] = (given, *record(lambda: forward(self.vit, given)))
                if len(self.recorded) > self.most:
                    del self.recorded[next(iter(self.recorded))]
            given, replay, result = self.recorded[key]
            given.copy_(images)
            replay()
            return tuple(level.clone() for level in result)

    def _fits(self, images: Tensor) -> bool:
        """Whether a graph can stand in for the forward pass; listeners, for one, run in Python."""
        return (
            isinstance(images, Tensor)
            and images.is_cuda
            and not (self.vit.training or torch.is_grad_enabled() or is_compiling())
            and autocast_dtype('cuda') is None
            and not getattr(self.vit, 'prune_listeners', ())
        )
