"""Models by name, for plain PyTorch."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone, resolve_arch
from mmvit_backbones.backbones.feature_info import FeatureInfo
from mmvit_backbones.checkpoints.description import IMAGENET_MEAN, IMAGENET_STD, PublicFile
from mmvit_backbones.checkpoints.loading import load_checkpoint
from mmvit_backbones.checkpoints.networks import NETWORKS, network_of_model
from mmvit_backbones.checkpoints.zoo import list_pretrained
from mmvit_backbones.hub import OnHub
from mmvit_backbones.layers.init import init_linear


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


class Classifier(nn.Module, OnHub):
    """Backbone, pooling neck and linear head.

    The parameters have the names that they have in mmpretrain's `ImageClassifier` with the same
    backbone, neck and a `LinearClsHead`: state dicts go both ways. The methods are those of timm's
    models.

    Args:
        backbone: Returns a tuple of feature maps; the neck uses the last.
        neck: From the tuple of feature maps to a tuple of one (B, C) tensor, as the necks of this
            package.
        num_classes: Number of classes; 0 makes `forward` return the pooled features.

    Attributes:
        out_channels: Channels of the backbone's feature maps.
        out_strides: Strides of the backbone's feature maps.
        pretrained_cfg: Input that the public weights expect; empty if `create_model` did not build
            the model.

    Raises:
        ValueError: If `num_classes` is negative.
    """

    def __init__(self, backbone: Backbone, neck: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        self.pretrained_cfg: dict[str, Any] = {}
        self.creation = {}
        self.backbone = backbone
        self.neck = neck
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of the backbone's feature maps."""
        return self.backbone.feature_info.under('backbone.')

    @property
    def num_features(self) -> int:
        """Channels of the pooled features."""
        return self.out_channels[-1]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that should have no weight decay, beside norms and biases."""
        keywords = self.backbone.no_weight_decay_keywords
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if any(keyword in name for keyword in keywords)}

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (B, C) of images (B, in_channels, H, W), with C of the last map."""
        return self.neck(self.backbone(x))[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        """Last feature map (B, C, H / stride, W / stride) of images (B, in_channels, H, W)."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last feature map.

        Args:
            x: What `forward_features` returns.
            pre_logits: Return the pooled features (B, C) instead.
        """
        pooled = self.neck((x,))[-1]
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        return self.head(self.features(x))

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an identity if there are no classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Give the model a new head.

        Args:
            num_classes: Number of classes, 0 for none.

        Raises:
            ValueError: If it is negative.
        """
        if num_classes < 0:
            raise ValueError(f'num_classes must be 0 or more, got {num_classes}')
        like = next(self.neck.parameters(), next(self.backbone.parameters()))
        self.num_classes = num_classes
        self.head = LinearHead(self.num_features, num_classes).to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block of the backbone in backward to save memory, or not."""
        self.backbone.set_grad_checkpointing(enable)


def create_model(
    name: str,
    num_classes: int | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> Backbone | Classifier:
    """Build a model, at random weights or at public ones.

    Args:
        name: One of `list_models()`, or another model of `list_pretrained()`.
        num_classes: None for a dense backbone, which returns a tuple of four feature maps at
            strides 4, 8, 16, 32; a number for a classifier, which returns logits; 0 for one without
            a head, which returns pooled features.
        pretrained: True for the default public weights, or the tag of others, such as
            `'dist_in1k_384'`; see `list_pretrained`. What the weights lack stays random: a head for
            another number of classes, output norms, a pyramid. The log says so.
        options: Further arguments of `TwinsSVT` or `XCiT`, such as `drop_path_rate`. A classifier
            sets those that choose the feature maps itself. `xcit_vit_pytorch` also takes its sizes:
            `image_size`, `patch_size`, `embed_dims`, `depth`, `num_heads`, `head_dims`, `mlp_dims`,
            `cls_depth`.

    Raises:
        ValueError: If the name or the tag is unknown, an argument is out of range, or the weights
            cannot be downloaded.
        TypeError: If an argument does not exist, or the name or the classifier sets it already.
    """
    network = network_of_model(name)
    if network is None:
        close = get_close_matches(name, list_models())
        hint = f'did you mean {" or ".join(close)}?' if close else 'list_models() gives all names'
        raise ValueError(f'name must be that of a model, got {name!r}: {hint}')
    file = _public_file(name, pretrained)
    creation = dict(name=name, num_classes=num_classes, options=dict(options))
    named: dict[str, Any] = dict(network.models.get(name, {}))
    if build := network.free_models.get(name):
        sizes = {key: options.pop(key) for key in build.__annotations__.keys() & options.keys()}
        named = build(**sizes)
    model: Backbone | Classifier
    if num_classes is None:
        model = network.backbone(**named, **options)
    else:
        arch = resolve_arch(named['arch'], network.archs)
        named |= network.last_map(arch)
        backbone = network.backbone(**named, **options)
        model = Classifier(backbone, network.pooling(backbone), num_classes)
    model.pretrained_cfg = _pretrained_cfg(name, file, network.crop)
    model.creation = creation
    if pretrained and file:
        print_log(f'{file.name}: {load_checkpoint(model, file.name)}', logger='current')
    return model


def _public_file(name: str, pretrained: bool | str) -> PublicFile | None:
    """Return the file that `pretrained` means, or the default one if it is False."""
    files = {file.tag: file for file in list_pretrained(name).values()}
    if isinstance(pretrained, bool):
        if pretrained and not files:
            raise ValueError(f'pretrained must be False for {name!r}, which has no public weights')
        return next(iter(files.values()), None)
    if pretrained not in files:
        raise ValueError(
            f'pretrained must be True, False or a tag of {name!r}, one of {list(files)}, got '
            f'{pretrained!r}'
        )
    return files[pretrained]


def _pretrained_cfg(name: str, file: PublicFile | None, crop: float) -> dict[str, Any]:
    """Say what input public weights expect, in timm's words."""
    size = file.input_size if file else 224
    known = {}
    if file:
        known = dict(
            tag=file.tag,
            url=file.addresses[0].url,
            num_classes=file.num_classes,
            license=file.licence,
        )
    return dict(
        architecture=name,
        input_size=(3, size, size),
        interpolation='bicubic',
        crop_pct=crop,
        mean=file.mean if file else IMAGENET_MEAN,
        std=file.std if file else IMAGENET_STD,
        **known,
    )


def list_models() -> list[str]:
    """Names that `create_model` knows, of models for dense prediction and classification.

    It knows those of classifiers of small images too, which have no pyramid (`xcit_small_12_p4`);
    `list_pretrained()` names them.
    """
    return [
        name
        for network in NETWORKS.values()
        for name in (*network.models, *network.free_models)
        if network.models.get(name, {}).get('pyramid', True)
    ]
