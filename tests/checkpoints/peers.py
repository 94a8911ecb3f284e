"""Models of other packages, random and tiny, beside ours of the same architecture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from timm.models.twins import Twins as TimmTwins
from timm.models.xcit import Xcit as TimmXCiT
from torch import Tensor, nn
from vit_pytorch.twins_svt import TwinsSVT as VitPytorchTwins
from vit_pytorch.xcit import XCiT as VitPytorchXCiT

from mmvit_backbones import TwinsSVT, XCiT
from mmvit_backbones.backbones.twins_svt import TwinsSVTArch
from mmvit_backbones.backbones.xcit import XCiTArch
from mmvit_backbones.checkpoints.networks import network_of
from mmvit_backbones.models import Classifier
from mmvit_backbones.necks import ClassAttentionPooling
from tests.utils import randomize

CLASSES = 5
TWINS = TwinsSVTArch(
    (8, 16, 24, 32), ('LG', 'L', 'LGL', 'LG'), (1, 2, 3, 4), head_dims=8, sr_ratios=(4, 2, 2, 1)
)
XCIT = XCiTArch(32, 3, 4, layer_scale=1.0)
VIT_PYTORCH_TWINS = TwinsSVTArch(
    (8, 16, 24, 16),
    ('LGLG', 'LGLGLG', 'LGLG', 'GGG'),
    (8, 8, 8, 8),
    head_dims=64,
    sr_ratios=(7, 7, 2, 1),
    peg_after=(1, 1, 1, 0),
    variant='vit-pytorch',
)
VIT_PYTORCH_XCIT = XCiTArch(
    32, 3, 2, head_dims=12, mlp_dims=48, cls_layers=3, variant='vit-pytorch', grid_size=(4, 4)
)
Arch = TwinsSVTArch | XCiTArch


def classifier(arch: Arch, patch_size: int = 16, num_classes: int = CLASSES) -> Classifier:
    """Our classifier of an architecture, at random and in float64."""
    if isinstance(arch, TwinsSVTArch):
        twins = TwinsSVT(arch, out_indices=(len(arch.stages) - 1,), out_norm=False)
        model = Classifier(twins, network_of(twins).pooling(twins), num_classes)
    else:
        xcit = XCiT(arch, patch_size, out_indices=(arch.depth - 1,), pyramid=False)
        model = Classifier(xcit, ClassAttentionPooling(**arch.class_attention), num_classes)
    return randomize(model, seed=1).double().eval()


@dataclass(frozen=True)
class Peer:
    """A package's model as a reference.

    Attributes:
        build: From an architecture and a patch size to the model.
        logits: From the model and an image to its logits.
    """

    build: Callable[..., nn.Module]
    logits: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)

    def random(self, arch: Arch, patch_size: int = 16) -> nn.Module:
        """A model with random weights in float64."""
        return randomize(self.build(arch, patch_size)).double().eval()


def timm_twins(arch: TwinsSVTArch, _: int = 16, num_classes: int = CLASSES) -> nn.Module:
    return TimmTwins(
        num_classes=num_classes,
        embed_dims=arch.embed_dims,
        num_heads=arch.num_heads,
        depths=tuple(map(len, arch.stages)),
        wss=(arch.window_size,) * 4,
        sr_ratios=arch.sr_ratios,
        mlp_ratios=(arch.mlp_ratio,) * 4,
    )


def timm_xcit(arch: XCiTArch, patch_size: int = 16, num_classes: int = CLASSES) -> nn.Module:
    model = TimmXCiT(
        patch_size=16 if patch_size == 4 else patch_size,
        num_classes=num_classes,
        embed_dim=arch.embed_dims,
        depth=arch.depth,
        num_heads=arch.num_heads,
        eta=arch.layer_scale,
        tokens_norm=arch.tokens_norm,
        cls_attn_layers=arch.cls_layers,
    )
    return without_two_strides(model) if patch_size == 4 else model


def without_two_strides(model: nn.Module) -> nn.Module:
    """Make patches of 4 of an XCiT for 16, as RobustBench's `adapt_model_patches` does."""
    for index in (0, 2):
        model.patch_embed.proj[index][0].stride = (1, 1)
    return model


def mmpretrain_classifier(
    arch: Arch, patch_size: int = 16, num_classes: int = CLASSES
) -> nn.Module:
    neck = None
    if isinstance(arch, TwinsSVTArch):
        backbone = dict(
            type='SVT',
            arch=_openmmlab_arch(arch),
            qkv_bias=True,
            norm_after_stage=[False, False, False, True],
        )
        neck = dict(type='GlobalAveragePooling')
        dims = arch.embed_dims[-1]
    else:
        backbone = dict(
            type='XCiT',
            patch_size=patch_size,
            embed_dims=arch.embed_dims,
            depth=arch.depth,
            num_heads=arch.num_heads,
            mlp_ratio=4,
            cls_attn_layers=arch.cls_layers,
            tokens_norm=arch.tokens_norm,
        )
        dims = arch.embed_dims
    head = dict(type='LinearClsHead', in_channels=dims, num_classes=num_classes)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Unnecessary conv bias')  # XCiT's, as the authors'
        model = MMPRETRAIN_MODELS.build(
            dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)
        )
    if isinstance(arch, TwinsSVTArch):
        set_epsilons(model)
    else:
        # Its Fourier features are float32 whatever the weights are.
        projection = model.backbone.pos_embed.token_projection
        projection.register_forward_pre_hook(
            lambda layer, args: (args[0].to(layer.conv.weight.dtype),)
        )
    return model


def mmseg_backbone(arch: TwinsSVTArch) -> nn.Module:
    sizes = _openmmlab_arch(arch)
    sizes['windiow_sizes'] = sizes.pop('window_sizes')  # spelt so there
    return set_epsilons(
        MMSEG_MODELS.build(dict(type='SVT', **sizes, qkv_bias=True, norm_after_stage=True))
    )


def _openmmlab_arch(arch: TwinsSVTArch) -> dict:
    return dict(
        embed_dims=list(arch.embed_dims),
        num_heads=list(arch.num_heads),
        patch_sizes=list(arch.patch_sizes),
        strides=list(arch.patch_sizes),
        mlp_ratios=[arch.mlp_ratio] * 4,
        depths=list(map(len, arch.stages)),
        sr_ratios=list(arch.sr_ratios),
        window_sizes=[arch.window_size] * 4,
    )


def set_epsilons(model: nn.Module) -> nn.Module:
    """Give the norms the authors' epsilons, of which those packages have only one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            is_plain = re.search(r'patch_embeds|attn\.norm', name)
            module.eps = 1e-5 if is_plain else 1e-6
    return model


def vit_pytorch_twins(arch: TwinsSVTArch, _: int = 16, num_classes: int = CLASSES) -> nn.Module:
    units = [len(blocks) // (1 if 'L' not in blocks else 2) for blocks in arch.stages]
    sizes = {}
    for i, (dims, depth, ratio) in enumerate(
        zip(arch.embed_dims, units, arch.sr_ratios, strict=True)
    ):
        sizes |= {
            f's{i + 1}_emb_dim': dims,
            f's{i + 1}_depth': depth - 1,
            f's{i + 1}_global_k': ratio,
        }
    return VitPytorchTwins(num_classes=num_classes, **sizes)


def vit_pytorch_xcit(arch: XCiTArch, patch_size: int = 16, num_classes: int = CLASSES) -> nn.Module:
    return VitPytorchXCiT(
        image_size=arch.grid_size[0] * patch_size,
        patch_size=patch_size,
        num_classes=num_classes,
        dim=arch.embed_dims,
        depth=arch.depth,
        cls_depth=arch.cls_layers,
        heads=arch.num_heads,
        mlp_dim=arch.mlp_dims,
        dim_head=arch.head_dims,
    )


def mmpretrain_logits(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(model.extract_feat(x))


PEERS = {
    'timm twins': (Peer(timm_twins), TWINS),
    'timm xcit': (Peer(timm_xcit), XCIT),
    'mmpretrain twins': (Peer(mmpretrain_classifier, mmpretrain_logits), TWINS),
    'mmpretrain xcit': (Peer(mmpretrain_classifier, mmpretrain_logits), XCIT),
    'vit-pytorch twins': (Peer(vit_pytorch_twins), VIT_PYTORCH_TWINS),
    'vit-pytorch xcit': (Peer(vit_pytorch_xcit), VIT_PYTORCH_XCIT),
}


def official_twins(arch: TwinsSVTArch, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the authors' ImageNet files."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f'{name}.weight'] = shape
        shapes[f'{name}.bias'] = shape[:1]

    before = 3
    for k, (dims, blocks, p, r) in enumerate(
        zip(arch.embed_dims, arch.stages, arch.patch_sizes, arch.sr_ratios, strict=True)
    ):
        layer(f'patch_embeds.{k}.proj', dims, before, p, p)
        layer(f'patch_embeds.{k}.norm', dims)
        for i in range(len(blocks)):
            block = f'blocks.{k}.{i}'
            layer(f'{block}.norm1', dims)
            if i % 2 == 0:
                layer(f'{block}.attn.qkv', 3 * dims, dims)
            else:
                layer(f'{block}.attn.q', dims, dims)
                layer(f'{block}.attn.kv', 2 * dims, dims)
                if r > 1:
                    layer(f'{block}.attn.sr', dims, dims, r, r)
                    layer(f'{block}.attn.norm', dims)
            layer(f'{block}.attn.proj', dims, dims)
            layer(f'{block}.norm2', dims)
            layer(f'{block}.mlp.fc1', 4 * dims, dims)
            layer(f'{block}.mlp.fc2', dims, 4 * dims)
        layer(f'pos_block.{k}.proj.0', dims, 1, 3, 3)
        before = dims
    layer('norm', before)
    layer('head', num_classes, before)
    return shapes


def official_xcit(arch: XCiTArch, patch_size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the authors' ImageNet files."""
    shapes: dict[str, tuple[int, ...]] = {}
    dims = arch.embed_dims

    def layer(name: str, *shape: int) -> None:
        shapes[f'{name}.weight'] = shape
        shapes[f'{name}.bias'] = shape[:1]

    def batch_norm(name: str, channels: int) -> None:
        layer(name, channels)
        shapes[f'{name}.running_mean'] = shapes[f'{name}.running_var'] = (channels,)
        shapes[f'{name}.num_batches_tracked'] = ()

    num_convs = {8: 3, 16: 4}[patch_size]
    channels = [3] + [dims // 2**i for i in reversed(range(num_convs))]
    for i in range(num_convs):
        shapes[f'patch_embed.proj.{2 * i}.0.weight'] = (channels[i + 1], channels[i], 3, 3)
        batch_norm(f'patch_embed.proj.{2 * i}.1', channels[i + 1])
    layer('pos_embeder.token_projection', dims, 64, 1, 1)
    for i in range(arch.depth):
        block = f'blocks.{i}'
        for norm in ('norm1', 'norm2', 'norm3'):
            layer(f'{block}.{norm}', dims)
        for gamma in ('gamma1', 'gamma2', 'gamma3'):
            shapes[f'{block}.{gamma}'] = (dims,)
        shapes[f'{block}.attn.temperature'] = (arch.num_heads, 1, 1)
        layer(f'{block}.attn.qkv', 3 * dims, dims)
        layer(f'{block}.attn.proj', dims, dims)
        layer(f'{block}.local_mp.conv1', dims, 1, 3, 3)
        batch_norm(f'{block}.local_mp.bn', dims)
        layer(f'{block}.local_mp.conv2', dims, 1, 3, 3)
        layer(f'{block}.mlp.fc1', 4 * dims, dims)
        layer(f'{block}.mlp.fc2', dims, 4 * dims)
    shapes['cls_token'] = (1, 1, dims)
    for j in range(2):
        block = f'cls_attn_blocks.{j}'
        for norm in ('norm1', 'norm2'):
            layer(f'{block}.{norm}', dims)
        for gamma in ('gamma1', 'gamma2'):
            shapes[f'{block}.{gamma}'] = (dims,)
        layer(f'{block}.attn.qkv', 3 * dims, dims)
        layer(f'{block}.attn.proj', dims, dims)
        layer(f'{block}.mlp.fc1', 4 * dims, dims)
        layer(f'{block}.mlp.fc2', dims, 4 * dims)
    layer('norm', dims)
    layer('head', num_classes, dims)
    return shapes


def official_file(arch: Arch, patch_size: int = 16) -> dict[str, Tensor]:
    """Random weights as in the authors' ImageNet files, in float64."""
    if isinstance(arch, TwinsSVTArch):
        shapes = official_twins(arch, CLASSES)
    else:
        shapes = official_xcit(arch, patch_size, CLASSES)
    holder = nn.Module()
    for i, shape in enumerate(shapes.values()):
        value = torch.zeros(shape) if shape else torch.tensor(7)
        holder.register_buffer(str(i), value)
    randomize(holder)
    return dict(zip(shapes, (v.double() if v.ndim else v for v in holder.buffers()), strict=True))


@contextmanager
def without_values() -> Iterator[None]:
    """Build models whose parameters have shapes only, as fast at full size as at any."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        register(module, name, None if value is None else nn.Parameter(value.to('meta')))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, 'register_parameter', register_on_meta)
        yield


def shapes_of(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state_dict.items()}
