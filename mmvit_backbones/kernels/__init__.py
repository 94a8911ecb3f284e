"""Faster ways to compute what the layers compute, behind one switch.

`README.md` in this folder lists the kernels with what each gains.
"""

from mmvit_backbones.kernels.dispatch import KERNELS
from mmvit_backbones.kernels.switch import explain, use

__all__ = ['KERNELS', 'explain', 'use']
