"""What pruners learn from in training: collector (what they saw), heads (predictions), targets (labels)."""

from .heads import BaseAuxHead, ClsAuxHead, MultiLabelAuxHead, PatchSegAuxHead, TokenClassAuxHead

__all__ = ['BaseAuxHead', 'ClsAuxHead', 'MultiLabelAuxHead', 'PatchSegAuxHead', 'TokenClassAuxHead']
