"""How other projects name the weights of a plain ViT, and what timm calls the same.

A layout renames; it changes no tensor but where the original computes with something else than it stores. What is then
still different from the model (fused or separate projections, another grid) is :mod:`.fit`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import Tensor

State = Dict[str, Tensor]
Rules = Tuple[Tuple[str, str], ...]


@dataclass(frozen=True)
class Layout:
    """One way to name the weights of a ViT.

    Attributes:
        name: the project, for messages.
        marks: patterns; each must fit some name from its beginning for the layout to be recognised.
        rules: pattern and replacement, tried in turn on each name from its beginning; the first that fits renames.
        values: applied to the renamed weights where the original computes with something else than it stores.
    """

    name: str
    marks: tuple[str, ...]
    rules: Rules = ()
    values: Callable[[State], State] | None = None

    def recognises(self, names: list[str]) -> bool:
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)

    def convert(self, state: State) -> State:
        """The weights by timm's names, without what a backbone has no use for."""
        renamed = {self.rename(name): value for name, value in state.items()}
        if self.values is not None:
            renamed = self.values(renamed)
        return {name: value for name, value in renamed.items() if not _NOT_BACKBONE.match(name)}

    def rename(self, name: str) -> str:
        for pattern, replacement in self.rules:
            if re.match(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name


# Classifiers, decoders of pre-training, mask tokens and cached angles: no part of a backbone.
_NOT_BACKBONE = re.compile(
    r'(head|head_dist|pre_logits|attn_pool|lm_head|dino_head|ibot_head|local_cls_norm|mask_token|decoder_\w+)(\.|$)'
    r'|(blocks\.\d+\.attn\.)?(rope|rope_embed|rope_win|rope_glb)\.'
    r'|blocks\.\d+\.attn\.relative_position_index$'
)

_BLOCK = r'layers\.(\d+)\.'
# A distilled DeiT's second token takes part in attention as a register does.
_DISTILLED: Rules = ((r'dist_token$', 'reg_token'),)
# timm keeps layer scale in blocks.0.ls1.gamma in its ViTs and in blocks.0.gamma_1 in its EVAs, as DeiT III does.
_GAMMAS: Rules = ((r'(blocks\.\d+)\.gamma_([12])$', r'\1.ls\2.gamma'),)
# mmcv's FFN is a Sequential; mmpretrain and mmsegmentation share these names.
_OPENMMLAB: Rules = (
    *_DISTILLED,
    (r'patch_embed\.projection\.', 'patch_embed.proj.'),
    (_BLOCK + r'(?:ln|norm)([12])\.', r'blocks.\1.norm\2.'),
    (_BLOCK + r'ffn\.layers\.0\.0\.', r'blocks.\1.mlp.fc1.'),
    (_BLOCK + r'ffn\.layers\.1\.', r'blocks.\1.mlp.fc2.'),
    (_BLOCK + r'(?:attn\.|ffn\.)?gamma_?([12])(?:\.weight)?$', r'blocks.\1.ls\2.gamma'),
    (r'(?:ln|norm)1\.', 'norm.'),
    (r'(?:ln|norm)2\.', 'fc_norm.'),
)


def _masked_bias(state: State) -> State:
    """DINOv3 multiplies the bias of queries, keys and values by a mask that it stores: keys have none."""
    masks = {name: value for name, value in state.items() if name.endswith('.attn.qkv.bias_mask')}
    state = {name: value for name, value in state.items() if name not in masks}
    for name in masks:
        bias = name.replace('.bias_mask', '.bias')
        if bias in state and state[bias].numel() % 3 == 0:
            # Not the product: a mask that nobody has set is NaN.
            query, key, value = state[bias].chunk(3)
            state[bias] = torch.cat([query, torch.zeros_like(key), value])
    return state


def _no_relative_bias(state: State) -> State:
    """BEiT adds a relative position bias to the attention; where it is all zero (as in MAE's start) it is nothing."""
    return {
        name: value
        for name, value in state.items()
        if not (name.endswith('.relative_position_bias_table') and not value.any())
    }


def _patch_bias(state: State) -> State:
    """mmsegmentation's ViT has by default no bias in its patch embedding: the same as one of zeros."""
    weight = state.get('patch_embed.proj.weight')
    if weight is None or 'patch_embed.proj.bias' in state:
        return state
    return {**state, 'patch_embed.proj.bias': weight.new_zeros(weight.shape[0])}


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        'DINOv3',  # facebookresearch/dinov3, models/vision_transformer.py
        marks=(r'storage_tokens$', r'blocks\.0\.'),
        rules=(
            (r'storage_tokens$', 'reg_token'),
            (r'(blocks\.\d+\.mlp)\.w1\.', r'\1.fc1_g.'),
            (r'(blocks\.\d+\.mlp)\.w2\.', r'\1.fc1_x.'),
            (r'(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
        ),
        values=_masked_bias,
    ),
    Layout(
        'DINOv2',  # facebookresearch/dinov2, models/vision_transformer.py
        marks=(r'(mask_token|register_tokens)$', r'blocks\.0\.(\d+\.)?ls1\.gamma$'),
        rules=(
            (r'register_tokens$', 'reg_token'),
            # Chunked for distributed training: the second number is the block's own, counted through.
            (r'blocks\.\d+\.(\d+)\.mlp\.w12\.', r'blocks.\1.mlp.fc1.'),
            (r'blocks\.\d+\.(\d+)\.mlp\.w3\.', r'blocks.\1.mlp.fc2.'),
            (r'blocks\.\d+\.(\d+)\.', r'blocks.\1.'),
            (r'(blocks\.\d+\.mlp)\.w12\.', r'\1.fc1.'),
            (r'(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
        ),
    ),
    Layout(
        'EVA-02',  # baaivision/EVA, EVA-02/asuka/modeling_finetune.py; EVA-02/det, modeling/backbone/vit.py
        marks=(r'blocks\.0\.mlp\.w(1|12)\.',),
        rules=(
            (r'(blocks\.\d+\.mlp)\.w1\.', r'\1.fc1_g.'),
            (r'(blocks\.\d+\.mlp)\.w2\.', r'\1.fc1_x.'),
            (r'(blocks\.\d+\.mlp)\.w12\.', r'\1.fc1.'),
            (r'(blocks\.\d+\.mlp)\.w3\.', r'\1.fc2.'),
            (r'(blocks\.\d+\.mlp)\.ffn_ln\.', r'\1.norm.'),
            (r'(blocks\.\d+\.attn)\.inner_attn_ln\.', r'\1.norm.'),
            *_GAMMAS,
        ),
    ),
    Layout(
        'timm, MAE, DeiT',  # timm/models/vision_transformer.py, eva.py; facebookresearch/mae and deit build on timm
        marks=(r'blocks\.0\.(norm1|attn|mlp)\.',),
        rules=(
            *_GAMMAS,
            *_DISTILLED,
        ),
    ),
    Layout(
        'mmsegmentation ViT',  # mmseg/models/backbones/vit.py: nn.MultiheadAttention within mmcv's
        marks=(r'layers\.0\.attn\.attn\.in_proj_weight$',),
        rules=(
            (_BLOCK + r'attn\.attn\.in_proj_(weight|bias)$', r'blocks.\1.attn.qkv.\2'),
            (_BLOCK + r'attn\.attn\.out_proj\.', r'blocks.\1.attn.proj.'),
            *_OPENMMLAB,
        ),
        values=_patch_bias,
    ),
    Layout(
        'mmpretrain, or BEiT / MAE of mmsegmentation',
        # mmpretrain/models/backbones/vision_transformer.py and vit_eva02.py, mmseg/models/backbones/beit.py and mae.py
        marks=(r'layers\.0\.attn\.qkv\.weight$',),
        rules=(
            (_BLOCK + r'(?:ffn|mlp)\.w12\.', r'blocks.\1.mlp.fc1.'),
            (_BLOCK + r'(?:ffn|mlp)\.w1\.', r'blocks.\1.mlp.fc1_g.'),
            (_BLOCK + r'(?:ffn|mlp)\.w2\.', r'blocks.\1.mlp.fc1_x.'),
            (_BLOCK + r'(?:ffn|mlp)\.w3\.', r'blocks.\1.mlp.fc2.'),
            (_BLOCK + r'mlp\.norm\.', r'blocks.\1.mlp.norm.'),
            *_OPENMMLAB,
            (_BLOCK + r'attn\.', r'blocks.\1.attn.'),
        ),
        values=_no_relative_bias,
    ),
)


def convert(state: State) -> tuple[State, str]:
    """Bring weights of any known layout to timm's names.

    Returns:
        The weights, and the name of the layout.

    Raises:
        ValueError: no layout is recognised.
    """
    names = list(state)
    for layout in LAYOUTS:
        if layout.recognises(names):
            return layout.convert(state), layout.name
    known = ', '.join(layout.name for layout in LAYOUTS)
    raise ValueError(f'is in no layout that is known ({known})')
