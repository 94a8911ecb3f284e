"""Faster ways to compute what the layers compute, behind one switch.

`README.md` in this folder lists them: what each computes, when it runs and what it gains.
"""

from mmvit_backbones.kernels.dispatch import KERNEL_NAMES
from mmvit_backbones.kernels.switch import explain, use

__all__ = ['KERNEL_NAMES', 'explain', 'use']
