"""Models by name, for plain PyTorch."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from mmvit_backbones.backbones import TwinsSVT, XCiT
from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.backbones.twins_svt import ARCHS as TWINS_SVT_ARCHS
from mmvit_backbones.backbones.xcit import ARCHS as XCIT_ARCHS
from mmvit_backbones.layers.init import init_linear
from mmvit_backbones.necks import ClassAttentionPooling, NormAveragePooling


class LinearHead(nn.Module):
    """Pooled features to logits; with 0 classes, to themselves.

    Args:
        in_channels: Channels of the features.
        num_classes: Number of classes, 0 for none.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes) if num_classes else nn.Identity()
        init_linear(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify features (B, in_channels)."""
        return self.fc(x)


class Classifier(nn.Module):
    """Backbone, pooling neck and linear head.

    The parameters have the names that they have in mmpretrain's `ImageClassifier` with the same
    backbone, neck and a `LinearClsHead`: state dicts go both ways.

    Args:
        backbone: Returns a tuple of maps; the neck uses the last.
        neck: From the tuple of maps to a tuple of one (B, C) tensor, as the necks of this package.
        num_classes: Number of classes; 0 makes `forward` return the pooled features.

    Attributes:
        out_channels: Channels of the backbone's maps.
        out_strides: Strides of the backbone's maps.

    Raises:
        ValueError: If `num_classes` is negative.
    """

    def __init__(self, backbone: Backbone, neck: nn.Module, num_classes: int) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f'num_classes must be 0 or more, got {num_classes}')
        self.num_classes = num_classes
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        self.backbone = backbone
        self.neck = neck
        self.head = LinearHead(self.out_channels[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (B, C) of images (B, in_channels, H, W), with C of the last map."""
        return self.neck(self.backbone(x))[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        return self.head(self.features(x))


def create_model(
    name: str, num_classes: int | None = None, **backbone_options: Any
) -> Backbone | Classifier:
    """Build a model at random weights.

    Args:
        name: One of `list_models()`.
        num_classes: None for a dense backbone, which returns a tuple of four maps at strides 4, 8,
            16, 32; a number for a classifier, which returns logits; 0 for one without a head,
            which returns pooled features.
        backbone_options: Further arguments of `TwinsSVT` or `XCiT`, such as `drop_path_rate`. A
            classifier sets those that choose the maps itself.

    Raises:
        ValueError: If the name is unknown or an argument out of range.
        TypeError: If an argument does not exist, or the name or the classifier sets it already.
    """
    if name not in _BACKBONES:
        close = get_close_matches(name, _BACKBONES)
        hint = f'did you mean {" or ".join(close)}?' if close else 'list_models() gives all names'
        raise ValueError(f'name must be that of a model, got {name!r}: {hint}')
    backbone_class, named_options = _BACKBONES[name]
    if num_classes is None:
        return backbone_class(**named_options, **backbone_options)
    if backbone_class is TwinsSVT:
        twins = TwinsSVT(**named_options, out_indices=(3,), out_norm=False, **backbone_options)
        return Classifier(twins, average_pooling_of(twins), num_classes)
    last = XCIT_ARCHS[named_options['arch']].depth - 1
    xcit = XCiT(**named_options, out_indices=(last,), pyramid=False, **backbone_options)
    return Classifier(xcit, ClassAttentionPooling(**xcit.arch.class_attention), num_classes)


def average_pooling_of(backbone: TwinsSVT) -> NormAveragePooling:
    """Build the neck that belongs to a Twins-SVT: with a norm, except in vit-pytorch's structure.

    Args:
        backbone: The backbone.
    """
    arch = backbone.arch
    return NormAveragePooling(
        backbone.out_channels[-1], norm=arch.is_paper, norm_eps=arch.norm_eps
    )


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return list(_BACKBONES)


def _spell(arch: str) -> str:
    return arch.replace('-', '_')


_BACKBONES: dict[str, tuple[type[TwinsSVT] | type[XCiT], dict[str, Any]]] = {
    **{f'twins_svt_{_spell(arch)}': (TwinsSVT, {'arch': arch}) for arch in TWINS_SVT_ARCHS},
    **{
        f'xcit_{_spell(arch)}_p{patch_size}': (XCiT, {'arch': arch, 'patch_size': patch_size})
        for arch in XCIT_ARCHS
        for patch_size in (8, 16)
    },
}
