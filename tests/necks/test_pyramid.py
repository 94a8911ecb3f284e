"""DeconvPoolPyramid against the same layers written out, at any size, with any norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmvit_backbones import XCiT
from mmvit_backbones.necks import DeconvPoolPyramid
from mmvit_backbones.registry import MODELS
from tests.utils import max_error, randomize


def written_out(stride: int) -> nn.ModuleDict:
    """The four resamplings of the XCiT authors' detection code, on 6 channels."""
    if stride == 16:
        fpn1: list[nn.Module] = [
            nn.ConvTranspose2d(6, 6, kernel_size=2, stride=2),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.ConvTranspose2d(6, 6, kernel_size=2, stride=2),
        ]
        fpn2: list[nn.Module] = [nn.ConvTranspose2d(6, 6, kernel_size=2, stride=2)]
        fpn3, fpn4 = nn.Identity(), nn.MaxPool2d(kernel_size=2, stride=2)
    else:
        fpn1, fpn2 = [nn.ConvTranspose2d(6, 6, kernel_size=2, stride=2)], []
        fpn3 = nn.MaxPool2d(kernel_size=2, stride=2)
        fpn4 = nn.MaxPool2d(kernel_size=4, stride=4)
    return nn.ModuleDict(
        dict(fpn1=nn.Sequential(*fpn1), fpn2=nn.Sequential(*fpn2), fpn3=fpn3, fpn4=fpn4)
    )


def random_maps(stride: int, size: tuple[int, int]) -> list[Tensor]:
    rows, columns = (-(-side // stride) for side in size)
    return [torch.randn(2, 6, rows, columns, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize('stride', [8, 16])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(32, 32), (64, 96), (160, 32)])
@torch.no_grad()
def test_equals_layers_written_out(stride: int, training: bool, size: tuple[int, int]) -> None:
    reference = randomize(written_out(stride)).double().train(training)
    neck = DeconvPoolPyramid(6, stride).double().train(training)
    neck.load_state_dict(reference.state_dict(), strict=True)
    maps = random_maps(stride, size)
    for ours, layers, x in zip(neck(maps), reference.values(), maps, strict=True):
        assert max_error(ours, layers(x)) <= 1e-12


@pytest.mark.parametrize('stride', [8, 16])
@torch.no_grad()
def test_without_stride_4(stride: int) -> None:
    whole = randomize(DeconvPoolPyramid(6, stride)).double().eval()
    part = DeconvPoolPyramid(6, stride, out_strides=(8, 16, 32)).double().eval()
    state = {k: v for k, v in whole.state_dict().items() if not k.startswith('fpn1')}
    part.load_state_dict(state, strict=True)
    maps = random_maps(stride, (33, 64))
    for ours, expected in zip(part(maps[1:]), whole(maps)[1:], strict=True):
        assert torch.equal(ours, expected)
    with pytest.raises(ValueError, match='maps must be 3, got 4'):
        part(maps)
    with pytest.raises(ValueError, match=r'out_strides must be .* got \(16, 32\)'):
        DeconvPoolPyramid(6, stride, out_strides=(16, 32))


@pytest.mark.parametrize('stride', [8, 16])
@pytest.mark.parametrize('size', [(97, 131), (33, 64), (800, 1333), (1, 1)])
def test_sizes_are_those_of_whole_patches_and_nothing_is_lost(
    stride: int, size: tuple[int, int]
) -> None:
    neck = randomize(DeconvPoolPyramid(6, stride)).double().eval()
    maps = [x.requires_grad_() for x in random_maps(stride, size)]
    outputs = neck(maps)
    height, width = (side * stride for side in maps[0].shape[2:])
    for out, s in zip(outputs, (4, 8, 16, 32), strict=True):
        assert out.shape == (2, 6, -(-height // s), -(-width // s))
        assert out.isfinite().all()
    sum(out.square().sum() for out in outputs).backward()
    for x in maps[:3] if stride == 16 else maps[:2]:  # pooled maps have a gradient at maxima only
        assert x.grad is not None
        assert x.grad.abs().sum(dim=(0, 1)).all()


def test_pooling_at_the_border_takes_the_largest_of_what_is_there() -> None:
    neck = DeconvPoolPyramid(1, stride=8)
    x = -torch.arange(1.0, 16.0).view(1, 1, 3, 5)
    outputs = neck([x] * 4)
    assert outputs[2].tolist() == [[[[-1, -3, -5], [-11, -13, -15]]]]
    assert outputs[3].tolist() == [[[[-1, -5]]]]


@pytest.mark.parametrize(
    'norm_cfg',
    [
        dict(type='BN', momentum=0.01),
        dict(type='SyncBN'),
        dict(type='GN', num_groups=3),
        dict(type='LN'),
    ],
)
def test_any_norm(norm_cfg: dict) -> None:
    neck = MODELS.build(
        dict(type='mmvit_backbones.DeconvPoolPyramid', in_channels=6, norm_cfg=norm_cfg)
    )
    outputs = neck.eval()([torch.randn(2, 6, 3, 4)] * 4)
    assert [out.shape[-1] for out in outputs] == [16, 8, 4, 2]


def test_backbone_composes_it() -> None:
    arch = dict(embed_dims=16, depth=5, num_heads=2)
    whole = randomize(XCiT(arch)).double().eval()
    single = XCiT(arch, pyramid=False).double().eval()
    names = single.state_dict().keys()
    single.load_state_dict({k: v for k, v in whole.state_dict().items() if k in names})
    assert whole.pyramid is not None
    x = torch.randn(1, 3, 70, 45, dtype=torch.float64)
    maps = whole.pyramid(single(x))  # whole patches: 80 x 48 px
    for ours, expected, s in zip(whole(x), maps, (4, 8, 16, 32), strict=True):
        assert max_error(ours, expected[:, :, : -(-70 // s), : -(-45 // s)]) < 1e-12


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match='stride must be 8 or 16, got 32'):
        DeconvPoolPyramid(6, stride=32)
    with pytest.raises(ValueError, match='maps must be 4, got 3'):
        DeconvPoolPyramid(6)([torch.zeros(1, 6, 2, 2)] * 3)
