"""Twins-SVT and XCiT as backbones for mmdetection, mmsegmentation, mmpretrain and plain PyTorch."""

from mmvit_backbones.backbones import TwinsSVT
from mmvit_backbones.version import __version__

__all__ = ['TwinsSVT', '__version__']
