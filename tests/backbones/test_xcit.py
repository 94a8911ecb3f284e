"""XCiT against timm and vit-pytorch, and its contract as a backbone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from timm.models.xcit import Xcit as TimmXCiT
from torch import nn
from vit_pytorch.xcit import XCiT as VitPytorchXCiT

from mmvit_backbones import XCiT
from mmvit_backbones.backbones.xcit import ARCHS, XCiTArch, default_out_indices
from mmvit_backbones.necks import ClassAttentionPooling
from tests.oracles import xcit_from_timm, xcit_from_vit_pytorch
from tests.utils import max_error, randomize

TOY = dict(embed_dims=16, depth=6, num_heads=2, layer_scale=1.0)
TOY_VIT_PYTORCH = dict(
    variant='vit-pytorch',
    embed_dims=16,
    depth=6,
    num_heads=2,
    head_dims=12,
    mlp_dims=24,
    grid_size=(4, 4),
)


@pytest.mark.parametrize('patch_size', [16, 8])
@pytest.mark.parametrize('name', ARCHS)
def test_equals_timm(name: str, patch_size: int) -> None:
    """All blocks and the class token; the two largest sizes at full width, cut in depth."""
    arch = ARCHS[name]
    if name in ('medium-24', 'large-24'):
        arch = replace(arch, depth=2)
    reference = TimmXCiT(
        patch_size=patch_size,
        num_classes=0,
        embed_dim=arch.embed_dims,
        depth=arch.depth,
        num_heads=arch.num_heads,
        eta=arch.layer_scale,
        tokens_norm=arch.tokens_norm,
    )
    randomize(reference).double().eval()
    backbone_weights, neck_weights = xcit_from_timm(reference.state_dict())
    model = XCiT(arch, patch_size, out_indices=range(arch.depth), pyramid=False).double().eval()
    model.load_state_dict(backbone_weights, strict=True)
    neck = ClassAttentionPooling(**arch.class_attention).double().eval()
    neck.load_state_dict(neck_weights, strict=True)
    for rows, columns in [(14, 14), (4, 10)]:
        x = torch.randn(1, 3, rows * patch_size, columns * patch_size, dtype=torch.float64)
        with torch.no_grad():
            tokens, expected = reference.forward_intermediates(x)
            maps = model(x)
            (pooled,) = neck(maps)
        assert len(maps) == arch.depth
        for ours, theirs in zip(maps, expected, strict=True):
            assert max_error(ours, theirs) <= 1e-9
        assert max_error(pooled, tokens[:, 0]) <= 1e-9


@pytest.mark.parametrize(('image_size', 'patch_size', 'kernel'), [(64, 16, 3), (48, 4, 5)])
def test_equals_vit_pytorch(image_size: int, patch_size: int, kernel: int) -> None:
    reference = VitPytorchXCiT(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=7,
        dim=40,
        depth=20,
        cls_depth=3,
        heads=3,
        dim_head=24,
        mlp_dim=56,
        local_patch_kernel_size=kernel,
    )
    randomize(reference).double().eval()
    grid = image_size // patch_size
    arch = XCiTArch(
        variant='vit-pytorch',
        embed_dims=40,
        depth=20,
        num_heads=3,
        head_dims=24,
        mlp_dims=56,
        cls_layers=3,
        grid_size=(grid, grid),
        lpi_kernel_size=kernel,
    )
    backbone_weights, neck_weights = xcit_from_vit_pytorch(reference.state_dict(), patch_size)
    model = XCiT(arch, patch_size, out_indices=range(20), pyramid=False).double().eval()
    model.load_state_dict(backbone_weights, strict=True)
    neck = ClassAttentionPooling(**arch.class_attention).double().eval()
    neck.load_state_dict(neck_weights, strict=True)
    x = torch.randn(2, 3, image_size, image_size, dtype=torch.float64)
    with torch.no_grad():
        maps = model(x)
        tokens = reference.to_patch_embedding(x)
        tokens = tokens + reference.pos_embedding.view(1, grid, grid, -1)
        for layer, ours in zip(reference.xcit_transformer.layers, maps, strict=True):
            for branch in layer:
                tokens = tokens + branch(tokens)
            assert max_error(ours.permute(0, 2, 3, 1), tokens) <= 1e-9
        patches = neck.patch_norm(maps[-1].permute(0, 2, 3, 1))
        assert max_error(patches, reference.final_norm(tokens)) <= 1e-9
        logits = reference.mlp_head[1](neck(maps)[0])
        assert max_error(logits, reference(x)) <= 1e-9


def test_starts_as_vit_pytorch_does() -> None:
    model = XCiT(dict(TOY_VIT_PYTORCH, depth=26), out_indices=(25,), pyramid=False)
    logarithms = torch.cat([block.attn.temperature.log() for block in model.blocks])
    torch.testing.assert_close(logarithms, torch.ones_like(logarithms))
    scales = [float(block.gamma2[0].detach()) for block in model.blocks]
    assert scales == pytest.approx([0.1] * 18 + [1e-5] * 6 + [1e-6] * 2)


@pytest.mark.parametrize('patch_size', [8, 16])
@pytest.mark.parametrize('size', [(32, 32), (33, 32), (97, 131), (64, 250)])
@pytest.mark.parametrize('arch', [TOY, TOY_VIT_PYTORCH])
def test_map_sizes_are_rounded_up(arch: dict, size: tuple[int, int], patch_size: int) -> None:
    pyramid = XCiT(arch, patch_size)
    single = XCiT(arch, patch_size, pyramid=False)
    assert pyramid.out_strides == (4, 8, 16, 32)
    assert single.out_strides == (patch_size,) * 4
    for model in (pyramid, single):
        outputs = model(torch.randn(2, 3, *size))
        assert model.out_channels == (16, 16, 16, 16)
        assert isinstance(outputs, tuple)
        for out, stride in zip(outputs, model.out_strides, strict=True):
            assert out.shape == (2, 16, -(-size[0] // stride), -(-size[1] // stride))
            assert out.isfinite().all()


def test_map_sizes_of_a_detection_image() -> None:
    model = XCiT('nano-12').eval()
    with torch.no_grad():
        shapes = [tuple(out.shape[2:]) for out in model(torch.zeros(1, 3, 800, 1333))]
    assert shapes == [(200, 334), (100, 167), (50, 84), (25, 42)]


@pytest.mark.parametrize('norm', [dict(type='BN'), dict(type='GN', num_groups=2), dict(type='LN')])
@pytest.mark.parametrize('arch', [TOY, TOY_VIT_PYTORCH])
@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(patch_size=8),
        dict(pyramid=False),
        dict(pyramid=False, out_indices=(2,)),
        dict(out_indices=(0, 1, 2, 4)),
    ],
)
def test_every_parameter_gets_a_gradient(arch: dict, norm: dict, arguments: dict) -> None:
    model = randomize(XCiT(arch, norm_cfg=norm, **arguments))
    outputs = model(torch.randn(2, 3, 64, 97))
    assert len(outputs) == len(model.out_indices)
    sum(out.pow(3).sum() for out in outputs).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ('depth', 'expected'),
    [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (6, (1, 2, 3, 5)), (5, (0, 1, 2, 4))],
)
def test_default_out_indices(depth: int, expected: tuple[int, ...]) -> None:
    assert default_out_indices(depth) == expected
    assert XCiT(dict(TOY, depth=depth)).out_indices == expected


def test_returned_maps_are_those_of_the_chosen_blocks() -> None:
    every = randomize(XCiT(TOY, out_indices=range(6), pyramid=False)).eval()
    chosen = XCiT(TOY, out_indices=(1, 4), pyramid=False).eval()
    assert chosen.num_layers == 5
    wanted = chosen.state_dict().keys()
    chosen.load_state_dict({k: v for k, v in every.state_dict().items() if k in wanted})
    x = torch.randn(1, 3, 50, 70)
    maps = every(x)
    assert torch.equal(chosen(x)[0], maps[1])
    assert torch.equal(chosen(x)[1], maps[4])


@pytest.mark.parametrize('arch', [TOY, TOY_VIT_PYTORCH])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 6])
def test_frozen_stages(arch: dict, frozen_stages: int) -> None:
    model = XCiT(arch, frozen_stages=frozen_stages).train()
    frozen: list[nn.Module] = [model.patch_embed, model.pos_embed] if frozen_stages >= 0 else []
    frozen += list(model.blocks)[: max(frozen_stages, 0)]
    expected = sum(p.numel() for p in model.parameters())
    expected -= sum(p.numel() for module in frozen for p in module.parameters())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert not any(m.training for module in frozen for m in module.modules())
    before = copy.deepcopy([dict(module.named_buffers()) for module in frozen])
    sum(out.sum() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for module, old in zip(frozen, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in module.named_buffers())
    for block in model.blocks[max(frozen_stages, 0) :]:
        assert block.training
        assert block.local_mp.bn.num_batches_tracked == 1


def test_norm_eval_keeps_batch_norm_in_evaluation_mode() -> None:
    for norm_eval in (True, False):
        model = XCiT(TOY, norm_eval=norm_eval).train()
        modes = {m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
        assert modes == {not norm_eval}
        assert model.blocks[0].attn.training


def test_drop_path_is_constant_and_skips_each_branch_once() -> None:
    model = XCiT(TOY, drop_path_rate=0.4)
    assert {block.drop_path.drop_prob for block in model.blocks} == {0.4}
    block = randomize(model.blocks[-1])
    x = torch.randn(4000, 1, 16)
    for left in ('gamma1', 'gamma2', 'gamma3'):
        only = copy.deepcopy(block)
        for name in {'gamma1', 'gamma2', 'gamma3'} - {left}:
            nn.init.zeros_(getattr(only, name))
        skipped = (only(x, (1, 1)) == x).all(dim=-1).float().mean()
        assert abs(skipped - 0.4) < 0.04  # applied twice it would be 0.64


def test_layer_depth() -> None:
    model = XCiT(TOY)
    assert model.num_layers == 6
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')[0]
        for name, _ in model.named_parameters()
    }
    assert depths['patch_embed.proj.0.0.weight'] == 0
    assert depths['pos_embed.token_projection.weight'] == 0
    assert depths['blocks.0.gamma1'] == depths['blocks.0.attn.qkv.weight'] == 1
    assert depths['blocks.5.mlp.fc2.bias'] == 6
    assert depths['pyramid.fpn1.0.weight'] == 7
    assert model.get_layer_depth('decode_head.conv_seg.weight', 'backbone.') == (7, 8)


@pytest.mark.parametrize(
    ('name', 'patch_size', 'millions'),
    [
        ('nano-12', 16, 3.05),
        ('tiny-12', 16, 6.72),
        ('tiny-12', 8, 6.71),
        ('tiny-24', 16, 12.12),
        ('small-12', 16, 26.25),
        ('small-24', 8, 47.63),
        ('medium-24', 16, 84.40),
        ('large-24', 16, 189.10),
        ('large-24', 8, 188.93),
    ],
)
def test_published_parameter_counts(name: str, patch_size: int, millions: float) -> None:
    """Counts of the classifiers, as mmpretrain's metafile has them."""
    arch = ARCHS[name]
    with torch.device('meta'):
        parts = nn.ModuleList(
            [
                XCiT(name, patch_size, pyramid=False),
                ClassAttentionPooling(**arch.class_attention),
                nn.Linear(arch.embed_dims, 1000),
            ]
        )
    assert round(sum(p.numel() for p in parts.parameters()) / 1e6, 2) == millions


def test_names_of_the_weights() -> None:
    names = XCiT(TOY).state_dict().keys()
    for name in (
        'patch_embed.proj.6.1.running_mean',
        'pos_embed.token_projection.bias',
        'blocks.5.attn.temperature',
        'blocks.5.local_mp.bn.running_var',
        'pyramid.fpn1.1.running_mean',
        'pyramid.fpn1.3.weight',
        'pyramid.fpn2.0.weight',
    ):
        assert name in names
    assert not any('cls' in name or 'cache' in name for name in names)
    assert 'pyramid.fpn1.0.weight' in XCiT(TOY, patch_size=8).state_dict()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='small'), r"arch must be one of \['large-12'.*got 'small'"),
        (dict(arch=dict(TOY, variant='timm')), "variant must be one of .* got 'timm'"),
        (dict(arch=dict(TOY, depth=0)), 'depth must be at least 1, got 0'),
        (dict(arch=dict(TOY, num_heads=3)), 'num_heads must divide embed_dims 16 .* got 3'),
        (dict(arch=dict(TOY, grid_size=(4, 4))), 'grid_size .* no meaning with another'),
        (dict(arch=dict(TOY, variant='vit-pytorch')), 'grid_size .* is required'),
        (dict(arch=dict(TOY, lpi_kernel_size=4)), 'lpi_kernel_size must be odd, got 4'),
        (dict(arch=dict(TOY, embed_dims=12)), 'embed_dims must be a multiple of 8 .* got 12'),
        (dict(arch=dict(TOY, depth=4)), 'out_indices must be given for a depth below 5'),
        (dict(out_indices=(0, 1, 2, 12)), r'out_indices must .* \(0 to 11\)'),
        (dict(out_indices=(3, 5, 5, 7)), 'strictly increasing'),
        (dict(out_indices=(3, 5)), r'out_indices must name 4 blocks with a pyramid, got \(3, 5\)'),
        (dict(patch_size=4), 'patch_size must be 8 or 16 with a pyramid, got 4'),
        (dict(patch_size=5, pyramid=False), r'patch_size must be one of \(4, 8, 16\) .* got 5'),
        (dict(arch=TOY_VIT_PYTORCH, patch_size=0, pyramid=False), 'patch_size must be at least 1'),
        (dict(frozen_stages=13), 'frozen_stages must lie in -1 to 12, got 13'),
        (dict(in_channels=0), 'in_channels must be at least 1, got 0'),
        (dict(norm_cfg='BN'), "norm_cfg must be a dict with the key .type., got 'BN'"),
        (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\), got 1.0'),
        (dict(drop_rate=-0.1), r'drop_rate must lie in \[0, 1\), got -0.1'),
        (dict(attn_drop_rate=2), r'attn_drop_rate must lie in \[0, 1\), got 2'),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        XCiT(**arguments)


def test_unknown_field_of_an_arch() -> None:
    with pytest.raises(TypeError, match=r"arch: .*'heads'.*; the fields of XCiTArch are"):
        XCiT(dict(TOY, heads=2))


def test_old_name_of_variant() -> None:
    arch = {'layout' if k == 'variant' else k: v for k, v in TOY_VIT_PYTORCH.items()}
    assert XCiT(arch).arch.variant == 'vit-pytorch'


@pytest.mark.parametrize('patch_size', [8, 16])
def test_patch_size_is_kept(patch_size: int) -> None:
    assert XCiT(TOY, patch_size).patch_size == patch_size
