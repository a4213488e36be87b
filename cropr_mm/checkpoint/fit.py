"""Weights by timm's names into the form that one model holds them in, without a change to what they compute.

Projections are fused or split, biases and positional embeddings moved to where the model has them, embeddings resized
to its patches and grid. What cannot be brought over stays as it is, for the caller to list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Dict

import torch
from mmengine.logging import MMLogger
from torch import Tensor

from .resize import resize_patch_embedding, resize_position_embedding

State = Dict[str, Tensor]
_PATCHES = 'patch_embed.proj.weight'


def fit(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], grid: tuple[int, int], old_grid: tuple[int, int] | None
) -> tuple[State, list[str]]:
    """Bring weights to the form of a model's own.

    Args:
        state: weights by timm's names.
        own: the model's state dict.
        grid: the model's patch grid.
        old_grid: the grid of the weights' positional embedding, where it is known.

    Returns:
        The weights, and what was done to them, for the log.

    Raises:
        ValueError: a positional embedding whose grid nothing tells.
    """
    state, notes = dict(state), []
    if 'norm.weight' not in state and 'fc_norm.weight' in state:
        # Models that pool by average have their final norm after the pooling.
        state = {re.sub('^fc_norm', 'norm', name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith('fc_norm.')}
    if 'norm.weight' not in own and any(name.startswith('norm.') for name in state):
        state = {name: value for name, value in state.items() if not name.startswith('norm.')}
        notes.append('final norm left out, as final_norm=False')
    notes += _add_zero_bias(state, own)
    for i in _blocks(own):
        _fit_attention(state, own, f'blocks.{i}.attn.')
        _fit_swiglu(state, own, f'blocks.{i}.mlp.')
    notes += fit_positions(state, own, grid, old_grid)
    notes += _fit_patches(state, own)
    if 'cls_token' in state and 'cls_token' not in own:  # detectors with windows are built without
        del state['cls_token']
        notes.append('[CLS] token left out, as the model has none')
    return state, notes


def _blocks(state: Mapping[str, Tensor]) -> list[int]:
    return sorted({int(match[1]) for match in (re.match(r'blocks\.(\d+)\.', name) for name in state) if match})


# --- attention and MLP ----------------------------------------------------------------------------------------


def divides(tensor: Tensor, parts: int) -> bool:
    """Whether a tensor can be cut into equal parts along its first dimension."""
    return tensor.ndim > 0 and tensor.shape[0] % parts == 0


def _has_bias(state: Mapping[str, Tensor], place: str) -> bool:
    return any(place + name in state for name in ('qkv.bias', 'q_bias', 'v_bias', 'q_proj.bias', 'v_proj.bias'))


def _add_zero_bias(state: State, own: Mapping[str, Tensor]) -> list[str]:
    """DINOv3's 7B has no bias of queries and values, and timm leaves out those of the others that are all zero."""
    blocks = [i for i in _blocks(state) if f'blocks.{i}.attn.qkv.weight' in state]
    is_dinov3 = 'reg_token' in state and 'pos_embed' not in state and 'blocks.0.attn.q_bias' in own
    if not is_dinov3 or any(_has_bias(state, f'blocks.{i}.attn.') for i in blocks):
        return []
    for i in blocks:
        weight = state[f'blocks.{i}.attn.qkv.weight']
        for bias in ('q_bias', 'v_bias'):
            state[f'blocks.{i}.attn.{bias}'] = weight.new_zeros(weight.shape[0] // 3)
    return ['no bias of queries and values in the file: zeros'] if blocks else []


def _fit_attention(state: State, own: Mapping[str, Tensor], place: str) -> None:
    """Fuse or split the projections of queries, keys and values, and put their biases where the model has them."""
    fused, parts = f'{place}qkv.weight', [f'{place}{p}_proj.weight' for p in 'qkv']
    if fused in own and all(name in state for name in parts):
        state[fused] = torch.cat([state.pop(name) for name in parts])
    elif parts[0] in own and fused in state and divides(state[fused], 3):
        state.update(zip(parts, state.pop(fused).chunk(3)))
    biases = _take_biases(state, place)
    if biases is None:
        return
    query, key, value = biases
    if f'{place}qkv.bias' in own:
        state[f'{place}qkv.bias'] = torch.cat([query, torch.zeros_like(query) if key is None else key, value])
        return
    split = f'{place}q_proj.bias' in own
    state[f'{place}q_proj.bias' if split else f'{place}q_bias'] = query
    state[f'{place}v_proj.bias' if split else f'{place}v_bias'] = value
    if f'{place}k_proj.bias' in own:
        state[f'{place}k_proj.bias'] = torch.zeros_like(query) if key is None else key
    elif key is not None and key.any():
        state[f'{place}k_bias'] = key  # left over: with rotary positions it would matter


def _take_biases(state: State, place: str) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """Biases of queries, keys (None: there is none) and values, taken out of the state dict; None if incomplete."""
    fused = state.get(f'{place}qkv.bias')
    if fused is not None and divides(fused, 3):
        query, key, value = state.pop(f'{place}qkv.bias').chunk(3)
        return query, key, value
    for pattern in ('{}_bias', '{}_proj.bias'):
        names = {p: place + pattern.format(p) for p in 'qkv'}
        if names['q'] in state and names['v'] in state:
            return state.pop(names['q']), state.pop(names['k'], None), state.pop(names['v'])
    return None


def _fit_swiglu(state: State, own: Mapping[str, Tensor], place: str) -> None:
    """Pack or unpack gate and value of a SwiGLU."""
    for kind in ('weight', 'bias'):
        packed, gate, value = (f'{place}{layer}.{kind}' for layer in ('fc1', 'fc1_g', 'fc1_x'))
        if packed in own and gate in state and value in state:
            state[packed] = torch.cat([state.pop(gate), state.pop(value)])
        elif gate in own and packed in state and divides(state[packed], 2):
            state[gate], state[value] = state.pop(packed).chunk(2)


# --- embeddings -----------------------------------------------------------------------------------------------


def fit_positions(
    state: State, own: Mapping[str, Tensor], grid: tuple[int, int], old_grid: tuple[int, int] | None
) -> list[str]:
    """Resize the positional embedding, and move that of prefix tokens to where the model has it; see :func:`fit`."""
    if 'pos_embed' not in state or 'pos_embed' not in own:
        return []
    positions = state['pos_embed']
    tokens = [state[name] for name in ('pos_embed', 'cls_token', 'reg_token') if name in state]
    if any(t.ndim != 3 or t.shape[2] != positions.shape[-1] for t in tokens):
        return []
    registers = state['reg_token'].shape[1] if 'reg_token' in state else 0
    embedded = own['pos_embed'].shape[1] - grid[0] * grid[1]
    # Prefix tokens with a position: as the model has it, none (DeiT III, timm's models with registers), the [CLS]
    # token alone (DINOv2 with registers), or all (distilled DeiT). Detectors in detectron2 (ViTDet, EVA-02) have no
    # [CLS] token any more, and its position all the same.
    class_token = int('cls_token' in state or 'cls_token' not in own)
    counts = dict.fromkeys([embedded, 0, class_token, class_token + registers])
    prefix, old_grid = _position_grid(positions, [n for n in counts if n <= class_token + registers], grid, old_grid)
    resized = resize_position_embedding(positions[:, prefix:], old_grid, grid, 0)
    of_prefix = positions[:, :prefix]
    if prefix and not embedded:  # the model gives prefix tokens no position: it goes into the tokens themselves
        if 'cls_token' in state:
            state['cls_token'] = state['cls_token'] + of_prefix[:, :1]
        if prefix > 1:
            state['reg_token'] = state['reg_token'] + of_prefix[:, 1:]
        of_prefix = of_prefix[:, :0]
    elif prefix < embedded:
        of_prefix = positions.new_zeros(1, embedded, positions.shape[2])
    state['pos_embed'] = torch.cat([of_prefix, resized], dim=1)
    if old_grid == grid:
        return []
    return [f'positional embedding resized from {old_grid[0]}×{old_grid[1]} to {grid[0]}×{grid[1]} patches']


def _position_grid(
    positions: Tensor, prefixes: list[int], grid: tuple[int, int], old_grid: tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    """How many prefix tokens have a position, and the grid of the others."""
    length = positions.shape[1]
    if old_grid is not None and length - old_grid[0] * old_grid[1] in prefixes:
        return length - old_grid[0] * old_grid[1], old_grid
    # Whatever is published was trained on squares.
    sides = {prefix: math.isqrt(max(length - prefix, 0)) for prefix in prefixes}
    squares = [(prefix, (side, side)) for prefix, side in sides.items() if side and side * side == length - prefix]
    own = [(prefix, grid) for prefix in prefixes if length - prefix == grid[0] * grid[1]]
    if squares and own and squares[0] != own[0]:
        side = squares[0][1][0]
        MMLogger.get_current_instance().warning(
            f'pos_embed {tuple(positions.shape)} is of {side}×{side} patches or of {grid[0]}×{grid[1]}, as '
            f'the model; nothing in the file tells. It is read as {side}×{side} and resized. If it was trained on '
            f'{grid[0]}×{grid[1]}, save it as a .pth file, or with tools/deploy.py: those keep the grid'
        )
    for found in (*squares, *own):
        return found
    raise ValueError(
        f'pos_embed {tuple(positions.shape)} is neither a square grid nor {grid[0]}×{grid[1]} patches after '
        f'{" or ".join(map(str, prefixes))} prefix tokens'
    )


def _fit_patches(state: State, own: Mapping[str, Tensor]) -> list[str]:
    weight, expected = state.get(_PATCHES), own[_PATCHES]
    if weight is None or weight.ndim != 4 or weight.shape == expected.shape:
        return []
    old, new = tuple(weight.shape[2:]), tuple(expected.shape[2:])
    state[_PATCHES] = resize_patch_embedding(weight, new[0])
    return [f'patch embedding resized from {old[0]}×{old[1]} to {new[0]}×{new[1]} pixels']
