"""What a backbone returns, in timm's words."""

from __future__ import annotations

from typing import Any


class FeatureInfo(list[dict[str, Any]]):
    """One dict for each feature map: `num_chs`, `reduction` (its stride) and `module`."""

    def channels(self) -> list[int]:
        """Channels of each feature map."""
        return [info['num_chs'] for info in self]

    def reduction(self) -> list[int]:
        """Stride of each feature map in pixels of the image."""
        return [info['reduction'] for info in self]

    def module_name(self) -> list[str]:
        """Module that each feature map comes from."""
        return [info['module'] for info in self]

    def under(self, prefix: str) -> FeatureInfo:
        """Return the same with a prefix before the modules' names."""
        return FeatureInfo({**info, 'module': prefix + info['module']} for info in self)
