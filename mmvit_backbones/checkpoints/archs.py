"""Which architecture weights belong to, by their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.backbones.twins_svt import ARCHS as TWINS_SVT_ARCHS
from mmvit_backbones.backbones.twins_svt import GLOBAL, LOCAL, TwinsSVT, TwinsSVTArch
from mmvit_backbones.backbones.xcit import ARCHS as XCIT_ARCHS
from mmvit_backbones.backbones.xcit import XCiT, XCiTArch
from mmvit_backbones.layers.conv_stem import NUM_CONVS
from mmvit_backbones.layers.variant import VIT_PYTORCH

TWINS_SVT, XCIT = 'twins_svt', 'xcit'
Arch = TwinsSVTArch | XCiTArch


@dataclass(frozen=True)
class Looks:
    """What the shapes of weights say about their architecture.

    Attributes:
        network: `'twins_svt'` or `'xcit'`.
        layout: `'paper'` or `'vit-pytorch'`.
        embed_dims: Channels, one entry a stage.
        blocks: Twins-SVT: the stages as strings of L and G; XCiT: the depth.
        num_heads: Heads of XCiT.
        patch_size: Patch size of XCiT; None if an `XCiTArch` leaves it open.
    """

    network: str
    layout: str
    embed_dims: tuple[int, ...]
    blocks: tuple[str, ...] | int
    num_heads: int | None = None
    patch_size: int | None = None

    def fits(self, other: Looks) -> bool:
        """Whether both can be the same architecture."""
        is_open = None in (self.patch_size, other.patch_size)
        return (self._fixed() == other._fixed()) and (
            is_open or self.patch_size == other.patch_size
        )

    def _fixed(self) -> tuple[Any, ...]:
        return self.network, self.layout, self.embed_dims, self.blocks, self.num_heads

    def __str__(self) -> str:
        for name, known in known_archs().items():
            if self == known:
                return name
        settings = [f'embed_dims {self.embed_dims}', f'blocks {self.blocks}']
        if self.network == XCIT:
            settings += [f'num_heads {self.num_heads}', f'patch_size {self.patch_size}']
        return f'a {self.network} in the {self.layout} layout with {", ".join(settings)}'


def known_archs() -> dict[str, Looks]:
    """Every named architecture."""
    twins = {
        f'{TWINS_SVT}_{name.replace("-", "_")}': _of_arch(arch, None)
        for name, arch in TWINS_SVT_ARCHS.items()
    }
    xcit = {
        f'{XCIT}_{name.replace("-", "_")}_p{patch_size}': _of_arch(arch, patch_size)
        for name, arch in XCIT_ARCHS.items()
        for patch_size in sorted(NUM_CONVS)
    }
    return {**twins, **xcit}


def looks_of_arch(arch: str | Arch) -> Looks:
    """Return what the weights of an architecture look like.

    Raises:
        ValueError: If `arch` is a name that is not known.
        TypeError: If it is neither a name nor an architecture.
    """
    if isinstance(arch, (TwinsSVTArch, XCiTArch)):
        return _of_arch(arch, None)
    if not isinstance(arch, str):
        raise TypeError(f'arch must be a name, a TwinsSVTArch or an XCiTArch, got {type(arch)}')
    known = known_archs()
    if arch not in known:
        raise ValueError(f'arch must be one of {sorted(known)}, got {arch!r}')
    return known[arch]


def looks_of_model(backbone: Backbone) -> Looks:
    """Return what the weights of a backbone's whole architecture look like.

    Raises:
        TypeError: If it is neither a TwinsSVT nor an XCiT.
    """
    if isinstance(backbone, TwinsSVT):
        return _of_arch(backbone.arch, None)
    if isinstance(backbone, XCiT):
        return _of_arch(backbone.arch, backbone.patch_size)
    raise TypeError(f'model must hold a TwinsSVT or an XCiT, got {type(backbone).__name__}')


def looks_of_weights(weights: Mapping[str, Tensor], network: str) -> Looks:
    """Return what weights look like, as far as they are there.

    Args:
        weights: Weights under our names with the prefix `backbone.`.
        network: `'twins_svt'` or `'xcit'`.
    """
    layout = VIT_PYTORCH if any('.pre_norm.' in key for key in weights) else 'paper'
    if network == TWINS_SVT:
        dims = _numbered(weights, r'backbone\.patch_embeds\.(\d+)\.proj\.weight')
        return Looks(
            network,
            layout,
            embed_dims=tuple(value.shape[0] for value in dims),
            blocks=tuple(_stage(weights, i) for i in range(len(dims))),
        )
    norms = _numbered(weights, r'backbone\.blocks\.(\d+)\.norm1\.weight')
    heads = _numbered(weights, r'backbone\.blocks\.(\d+)\.attn\.temperature')
    return Looks(
        network,
        layout,
        embed_dims=(norms[0].shape[0],) if norms else (0,),
        blocks=len(norms),
        num_heads=heads[0].shape[0] if heads else None,
        patch_size=_patch_size(weights, layout),
    )


def _stage(weights: Iterable[str], stage: int) -> str:
    """One letter a block: only global attention has a query projection of its own."""
    kinds = {}
    for key in weights:
        if match := re.match(rf'backbone\.blocks\.{stage}\.(\d+)\.attn\.(qkv|q)\.', key):
            kinds[int(match[1])] = LOCAL if match[2] == 'qkv' else GLOBAL
    return ''.join(kinds[i] for i in sorted(kinds))


def _numbered(weights: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    found = {int(m[1]): value for k, value in weights.items() if (m := re.fullmatch(pattern, k))}
    return [found[i] for i in sorted(found)]


def _patch_size(weights: Mapping[str, Tensor], layout: str) -> int | None:
    if layout == VIT_PYTORCH:
        conv = weights.get('backbone.patch_embed.proj.weight')
        return None if conv is None else conv.shape[-1]
    convs = _numbered(weights, r'backbone\.patch_embed\.proj\.(\d+)\.0\.weight')
    return 2 ** len(convs) if convs else None


def _of_arch(arch: Arch, patch_size: int | None) -> Looks:
    if isinstance(arch, TwinsSVTArch):
        return Looks(TWINS_SVT, arch.variant, tuple(arch.embed_dims), tuple(arch.stages))
    return Looks(XCIT, arch.variant, (arch.embed_dims,), arch.depth, arch.num_heads, patch_size)
