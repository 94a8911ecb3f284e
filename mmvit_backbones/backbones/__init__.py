"""The two networks as dense-prediction backbones."""

from mmvit_backbones.backbones.twins_svt import TwinsSVT, TwinsSVTArch

__all__ = ['TwinsSVT', 'TwinsSVTArch']
