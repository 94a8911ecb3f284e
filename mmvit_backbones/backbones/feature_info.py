"""What a backbone returns, in timm's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FeatureInfo(list[dict[str, Any]]):
    """One dict for each feature map: `num_chs`, `reduction` (its stride) and `module`.

    The methods take which feature maps: an index for the value of one, indices for a list of
    values, None for all.
    """

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of feature maps."""
        return self._get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Stride of feature maps in pixels of the image."""
        return self._get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Module that feature maps come from."""
        return self._get('module', idx)

    def _get(self, key: str, idx: int | Sequence[int] | None) -> Any:
        if isinstance(idx, int):
            return self[idx][key]
        return [self[i][key] for i in (range(len(self)) if idx is None else idx)]

    def under(self, prefix: str) -> FeatureInfo:
        """Return the same with a prefix before the modules' names."""
        return FeatureInfo({**info, 'module': prefix + info['module']} for info in self)
