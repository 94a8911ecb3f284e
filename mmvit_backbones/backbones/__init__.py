"""The two networks as dense-prediction backbones."""

from mmvit_backbones.backbones.twins_svt import TwinsSVT, TwinsSVTArch
from mmvit_backbones.backbones.xcit import XCiT, XCiTArch

__all__ = ['TwinsSVT', 'TwinsSVTArch', 'XCiT', 'XCiTArch']
