"""Measure variants of one model: time, memory, FLOPs, tokens, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..cuda_graphs import record
from ..models import CroprViT
from ..models.cropr_vit import find_backbone
from .figures import save_figure
from .flops import count_flops, pruned_ratio, tokens_per_block
from .machine import check_device
from .memory import peak_memory
from .parts import time_parts
from .throughput import compare_throughput


@dataclass(frozen=True)
class Setting:
    """How models are run.

    Attributes:
        device: ``'cpu'``, ``'cuda'``, …
        dtype: of weights and images at inference; in training of autocast, with float32 weights.
        training: time training steps (forward, backward, AdamW) in place of inference.
        compile_blocks: compile the blocks with ``torch.compile``.
        cuda_graph: record each call as a CUDA graph and replay it (inference alone).
        rounds: how often each variant is timed; the median counts. 0: only count operations and tokens.
    """

    device: str = 'cpu'
    dtype: torch.dtype = torch.float32
    training: bool = False
    compile_blocks: bool = False
    cuda_graph: bool = False
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.cuda_graph and (self.training or not self.device.startswith('cuda')):
            raise ValueError('--cuda-graph: needs --device cuda and works for inference alone')
        check_device('--device', self.device)


def measure(variants: Mapping[str, nn.Module], batch: Mapping[str, Any], setting: Setting) -> dict[str, dict[str, Any]]:
    """Measure variants of :func:`~cropr_mm.benchmark.variants.build_variants` on one batch, timed in turn.

    Args:
        variants: the first is what the others compare with.
        batch: ``inputs`` and ``data_samples`` (see :func:`~cropr_mm.benchmark.batches.random_batch`).
        setting: how.

    Returns:
        For each variant: ``images_per_second``, ``milliseconds`` (median), ``spread`` (quartiles, share of the median),
        ``ratio_to_dense``, ``gflops`` per image, ``flops_limit`` (FLOPs of the first one over its own),
        ``share_of_flops_limit``, ``peak_bytes`` (weights and optimizer included), ``milliseconds_of_parts`` (inference
        alone), ``tokens_pruned_ratio``, ``tokens_per_block``. With no rounds, what can be counted.
    """
    dtype = torch.float32 if setting.training else setting.dtype  # training computes in lower precision by autocast
    batch = dict(batch, inputs=batch['inputs'].to(setting.device, dtype))
    runs = {}
    for name, model in variants.items():
        model.to(setting.device, dtype)
        runs[name] = (_training_step if setting.training else prediction)(model, batch, setting)
    figures = {name: _count(model, runs[name][0], batch['inputs'], setting) for name, model in variants.items()}
    first = next(iter(figures.values()))
    for row in figures.values():
        row['flops_limit'] = first['gflops'] / row['gflops']
    if setting.compile_blocks:
        for model in variants.values():
            find_backbone(model).compile_blocks()
    if setting.rounds:
        _time({name: call for name, (call, _) in runs.items()}, figures, len(batch['inputs']), setting)
        for name, (call, static) in runs.items():
            figures[name].update(_look_inside(variants[name], call, static, setting))
    return figures


def _count(model: nn.Module, call: Callable[[], Any], images: Tensor, setting: Setting) -> dict[str, Any]:
    """What can be counted: operations and tokens."""
    backbone = find_backbone(model)
    shape = (*images.shape[-2:], backbone.pruning_progress if setting.training else 1.0)
    return dict(
        gflops=count_flops(call, grad=setting.training) / len(images) / 1e9,
        tokens_pruned_ratio=pruned_ratio(backbone, *shape),
        tokens_per_block=tokens_per_block(backbone, *shape),
    )


def _time(
    calls: dict[str, Callable[[], Any]], figures: dict[str, dict[str, Any]], images: int, setting: Setting
) -> None:
    """Time all variants in turn, and add their speeds to the figures."""
    if setting.cuda_graph:
        with torch.cuda.device(setting.device):
            calls = {name: graphed(call) for name, call in calls.items()}
    timings = compare_throughput(calls, images, setting.rounds, device=setting.device, grad=setting.training)
    first = next(iter(timings.values()))
    for name, timing in timings.items():
        ratio = timing.ratio_to(first)
        figures[name].update(
            images_per_second=timing.images_per_second,
            milliseconds=timing.milliseconds,
            spread=timing.spread,
            ratio_to_dense=ratio,
            share_of_flops_limit=ratio / figures[name]['flops_limit'],
        )


def _look_inside(model: nn.Module, call: Callable[[], Any], static: int, setting: Setting) -> dict[str, Any]:
    """Peak memory, and at inference the time of each part."""
    with torch.inference_mode(not setting.training):
        row: dict[str, Any] = dict(peak_bytes=static + peak_memory(call, setting.device))
        if not setting.training:
            parts = time_parts(model, call, setting.device)
            row['milliseconds_of_parts'] = {part: 1000 * seconds for part, seconds in parts.items()}
    return row


def prediction(model: nn.Module, batch: Mapping[str, Any], setting: Setting) -> tuple[Callable[[], Any], int]:
    """A prediction, and the bytes of weights."""
    static = _bytes([*model.parameters(), *model.buffers()])
    if isinstance(model, CroprViT):
        return lambda: model(batch['inputs']), static
    return lambda: model(**batch, mode='predict'), static


def _training_step(model: Any, batch: Mapping[str, Any], setting: Setting) -> tuple[Callable[[], Any], int]:
    """A training step, and the bytes of weights and optimizer."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-6)
    backbone = find_backbone(model)
    device, lower = torch.device(setting.device).type, setting.dtype != torch.float32

    def losses() -> Tensor:
        samples = batch['data_samples']
        if isinstance(model, CroprViT):  # a backbone by itself: any loss that reaches every token
            total = torch.stack([level.tokens.float().square().mean() for level in model(batch['inputs'])]).sum()
        else:
            total, _ = model.parse_losses(model(batch['inputs'], samples, mode='loss'))
        return total + backbone.aux_losses(samples).get('loss_aux', 0.0)

    def step() -> None:
        with torch.autocast(device, setting.dtype) if lower else nullcontext():
            total = losses()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the next call's peak includes its own gradients, not leftovers

    step()  # makes the optimizer's state
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
    return step, _bytes([*model.parameters(), *model.buffers(), *state])


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """Record a call on the current CUDA device as a graph; what comes back replays it.

    Raises:
        ValueError: the call waits for the device, or its shapes depend on the data.
    """
    try:
        return record(call)[0]
    except RuntimeError as error:
        raise ValueError(
            '--cuda-graph: this model cannot be recorded, as it waits for the GPU or its shapes depend on the data '
            f'({str(error).splitlines()[0]}); a backbone by itself, without --whole-model, can'
        ) from error


def draw(figures: Mapping[str, Mapping[str, Any]], path: str | Path, title: str = '') -> Path:
    """Draw images/s of each variant, and at inference where its time goes.

    Args:
        figures: of :func:`measure`.
        path: file to write; its suffix says the format.
        title: above the panels.
    """
    from matplotlib.figure import Figure

    parted = all('milliseconds_of_parts' in row for row in figures.values())
    figure = Figure(figsize=(9.6 if parted else 4.8, 3.6), dpi=120, facecolor='white', layout='constrained')
    axes = figure.subplots(1, 2 if parted else 1, squeeze=False)[0]
    names = list(figures)
    speeds = [figures[name]['images_per_second'] for name in names]
    bars = axes[0].bar(names, speeds, color=['0.4', *['tab:blue'] * (len(names) - 1)])
    axes[0].bar_label(bars, [f'{figures[name]["ratio_to_dense"]:.2f}×' for name in names])
    axes[0].set_ylabel('images/s')
    if parted:
        bottom = [0.0] * len(names)
        for part in dict.fromkeys(part for name in names for part in figures[name]['milliseconds_of_parts']):
            heights = [max(figures[name]['milliseconds_of_parts'].get(part, 0.0), 0.0) for name in names]
            if max(heights) > 0.002 * max(map(sum, zip(bottom, heights))):
                axes[1].bar(names, heights, bottom=bottom, label=part)
                bottom = [low + height for low, height in zip(bottom, heights)]
        axes[1].set_ylabel('ms per batch')
        axes[1].legend(fontsize=8)
    return save_figure(figure, path, title)
