"""TwinsSVT against timm, vit-pytorch and an explicit per-window reference."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from mmvit_backbones import TwinsSVT, convert_state_dict, create_model, kernels
from mmvit_backbones.backbones.twins_svt import ARCHS
from mmvit_backbones.layers.tokens import Size
from mmvit_backbones.layers.window_attention import WindowAttention, window_indices
from tests.utils import max_error, randomize

TINY = dict(
    embed_dims=(8, 12, 16, 20),
    stages=('LG', 'LG', 'LGL', 'LG'),
    num_heads=(1, 2, 2, 4),
    head_dims=8,
)


def load_without_output_norms(model: TwinsSVT, converted: dict[str, Tensor]) -> None:
    wanted = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in converted.items() if k in wanted}, strict=True)


@pytest.mark.parametrize('arch', ['small', 'base', 'large'])
def test_equals_timm_where_windows_tile_the_maps(arch: str) -> None:
    reference = randomize(timm.create_model(f'twins_svt_{arch}')).double().eval()
    model = TwinsSVT(arch, out_norm=False).double().eval()
    load_without_output_norms(model, reference.state_dict())
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = reference.forward_intermediates(x, intermediates_only=True)
        outputs = model(x)
    assert len(outputs) == 4
    for ours, theirs in zip(outputs, expected, strict=True):
        assert max_error(ours, theirs) <= 1e-9


@pytest.mark.parametrize(
    ('arch', 'size'),
    [('small', (96, 160)), ('small', (192, 288)), ('base', (96, 160)), ('large', (96, 160))],
)
def test_zero_padding_equals_timm(arch: str, size: tuple[int, int]) -> None:
    reference = randomize(timm.create_model(f'twins_svt_{arch}')).double().eval()
    model = TwinsSVT(arch, out_norm=False, window_padding='zero').double().eval()
    load_without_output_norms(model, reference.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = reference.forward_intermediates(x, intermediates_only=True)
        for ours, theirs in zip(model(x), expected, strict=True):
            assert max_error(ours, theirs) <= 1e-9


def test_equals_vit_pytorch() -> None:
    from vit_pytorch.twins_svt import TwinsSVT as Reference

    reference = randomize(Reference(num_classes=2)).double().eval()
    model = create_model('twins_svt_vit_pytorch').double().eval()
    converted = convert_state_dict(reference.state_dict(), 'twins_svt_vit_pytorch', to='ours')
    backbone = {k.removeprefix('backbone.'): v for k, v in converted.items()}
    load_without_output_norms(model, backbone)
    x = torch.randn(1, 3, 224, 448, dtype=torch.float64)
    with torch.no_grad():
        outputs = model(x)
        expected = x
        for stage, ours in zip(reference.layers[:4], outputs, strict=True):
            expected = stage(expected)
            assert max_error(ours, expected) <= 1e-9


def explicit_window_attention(attn: WindowAttention, tokens: Tensor, grid: Size) -> Tensor:
    """Attention of each token to all tokens of the map that lie in its window, one by one."""
    x = tokens.unflatten(1, grid)
    height, width, size = x.shape[1], x.shape[2], attn.window_size
    inner = attn.qkv.out_features // 3
    head_dims = inner // attn.num_heads
    q, k, v = attn.qkv(x).split(inner, dim=-1)
    out = torch.zeros_like(q)
    for top in range(0, height, size):
        for left in range(0, width, size):
            window = (slice(None), slice(top, top + size), slice(left, left + size))
            for head in range(attn.num_heads):
                channels = slice(head * head_dims, (head + 1) * head_dims)
                query, key, value = (t[window][..., channels].flatten(1, 2) for t in (q, k, v))
                weights = (query @ key.transpose(1, 2) / head_dims**0.5).softmax(-1)
                out[(*window, channels)] = (weights @ value).view(out[(*window, channels)].shape)
    return attn.proj(out).flatten(1, 2)


@pytest.mark.parametrize('size', [(7, 7), (14, 10), (9, 14), (8, 13), (5, 3), (1, 1), (7, 10)])
def test_masked_windows_equal_explicit_reference(size: tuple[int, int]) -> None:
    attn = randomize(WindowAttention(12, num_heads=2, head_dims=6, window_size=7)).double()
    x = torch.randn(2, size[0] * size[1], 12, dtype=torch.float64)
    with torch.no_grad():
        assert max_error(attn(x, size), explicit_window_attention(attn, x, size)) <= 1e-12


class ExplicitWindowAttention(WindowAttention):
    def forward(self, x: Tensor, size: Size) -> Tensor:
        return explicit_window_attention(self, x, size)


@pytest.mark.parametrize('mode', ['auto', 'reference'])
@pytest.mark.parametrize('size', [(97, 131), (200, 336), (64, 250)])
def test_masked_network_equals_explicit_reference(size: tuple[int, int], mode: str) -> None:
    model = randomize(TwinsSVT(TINY)).double().eval()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad(), kernels.use(mode):
        outputs = model(x)
        for module in model.modules():
            if isinstance(module, WindowAttention):
                module.__class__ = ExplicitWindowAttention
        for ours, expected in zip(outputs, model(x), strict=True):
            assert max_error(ours, expected) <= 1e-10


def test_padding_takes_no_part_in_masked_windows() -> None:
    """Zero padding changes the windows that reach over the border, and only those."""
    attn = randomize(WindowAttention(8, num_heads=2, head_dims=4, window_size=7)).double()
    x = torch.randn(1, 90, 8, dtype=torch.float64)
    with torch.no_grad():
        masked = attn(x, (10, 9)).view(10, 9, 8)
        attn.padding = 'zero'
        zero_padded = attn(x, (10, 9)).view(10, 9, 8)
    assert max_error(masked[7:], zero_padded[7:]) > 1e-3
    assert max_error(masked[:, 7:], zero_padded[:, 7:]) > 1e-3
    assert max_error(masked[:7, :7], zero_padded[:7, :7]) <= 1e-12


@pytest.mark.parametrize('size', [(6, 9), (7, 10), (2, 2), (1, 7)])
def test_window_indices(size: tuple[int, int]) -> None:
    to_windows, is_inside, to_grid = window_indices(size, 3, torch.device('cpu'))
    index = torch.arange(size[0] * size[1])
    assert torch.equal(to_windows[to_grid], index)
    assert is_inside[to_grid].all()
    assert int(is_inside.sum()) == len(index)
    row, column = index // size[1] // 3, index % size[1] // 3
    assert torch.equal(to_grid // 9, row * -(-size[1] // 3) + column)


def test_output_norms_belong_to_the_paper() -> None:
    for arch, has_norms in ((TINY, True), (dict(TINY, variant='vit-pytorch'), False)):
        norms = TwinsSVT(arch).norm_list
        assert {isinstance(norm, nn.LayerNorm) for norm in norms} == {has_norms}


def test_old_name_of_variant() -> None:
    assert TwinsSVT(dict(TINY, layout='vit-pytorch')).arch.variant == 'vit-pytorch'


@pytest.mark.parametrize('out_indices', [(0,), (1,), (0, 2), (0, 1, 2, 3), (3,)])
@pytest.mark.parametrize('arch', [TINY, dict(TINY, variant='vit-pytorch')])
@pytest.mark.parametrize('out_norm', [True, False])
def test_every_parameter_gets_a_gradient(
    out_indices: tuple[int, ...], arch: dict, out_norm: bool
) -> None:
    model = randomize(TwinsSVT(arch, out_indices=out_indices, out_norm=out_norm))
    outputs = model(torch.randn(2, 3, 64, 97))
    assert len(outputs) == len(out_indices) == len(model.out_channels) == len(model.out_strides)
    sum(out.pow(3).sum() for out in outputs).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(frozen_stages: int) -> None:
    model = TwinsSVT(TINY, frozen_stages=frozen_stages).train()
    stages = [
        nn.ModuleList(
            [model.patch_embeds[i], model.blocks[i], model.pos_block[i], model.norm_list[i]]
        )
        for i in range(4)
    ]
    expected = sum(p.numel() for p in model.parameters())
    if frozen_stages == 0:
        expected -= sum(p.numel() for p in model.patch_embeds[0].parameters())
    for stage in stages[: max(frozen_stages, 0)]:
        expected -= sum(p.numel() for p in stage.parameters())
        assert not any(module.training for module in stage.modules() if module is not stage)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    if expected:
        sum(out.sum() for out in model(torch.randn(1, 3, 64, 64))).backward()


def test_drop_path_grows_linearly_and_skips_a_branch_once() -> None:
    model = TwinsSVT(TINY, drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in model.blocks for block in stage]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.4, 9))
    block = model.blocks[-1][-1]
    block.mlp.requires_grad_(False)
    for parameter in block.mlp.parameters():
        parameter.zero_()
    torch.manual_seed(0)
    x = torch.randn(4000, 1, 20)
    skipped = (block(x, (1, 1)) == x).all(dim=-1).float().mean()
    assert abs(skipped - 0.4) < 0.03  # applied twice it would be 0.64


def test_layer_depth() -> None:
    model = TwinsSVT(TINY)
    assert model.num_layers == 9
    depths = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')[0]
        for name, _ in model.named_parameters()
    }
    assert depths['patch_embeds.0.proj.weight'] == 0
    assert depths['blocks.0.0.norm1.weight'] == depths['pos_block.0.proj.0.weight'] == 1
    assert depths['patch_embeds.1.proj.weight'] == depths['blocks.1.0.attn.qkv.weight'] == 3
    assert depths['blocks.3.1.mlp.fc2.bias'] == 9
    assert depths['norm_list.0.weight'] == 10
    assert model.get_layer_depth('bbox_head.fc.weight', 'backbone.') == (10, 11)


@pytest.mark.parametrize(
    ('arch', 'millions'), [('small', 24.06), ('base', 56.07), ('large', 99.27)]
)
def test_published_parameter_counts(arch: str, millions: float) -> None:
    """Counts with the ImageNet head, as reported by the authors' README."""
    with torch.device('meta'):
        model = TwinsSVT(arch, out_norm=False)
    dims = model.out_channels[-1]
    head = 2 * dims + dims * 1000 + 1000  # norm and linear layer
    count = sum(p.numel() for p in model.parameters()) + head
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), r"arch must be one of \['base'.*got 'huge'"),
        (dict(arch=dict(TINY, stages=('LG', 'LX', 'LG', 'LG'))), "L and G blocks, got 'LX'"),
        (dict(arch=dict(TINY, num_heads=(1, 2))), 'per-stage settings differ in length'),
        (dict(arch=dict(TINY, peg_after=(0, 0, 3, 0))), 'peg_after must name one of the 3 blocks'),
        (dict(out_indices=(0, 4)), r'out_indices must .* \(0 to 3\), got \(0, 4\)'),
        (dict(out_indices=(1, 0)), 'strictly increasing'),
        (dict(out_indices=(1, 1)), 'strictly increasing'),
        (dict(out_indices=(-1,)), 'out_indices must'),
        (dict(out_indices=()), 'out_indices must'),
        (dict(frozen_stages=5), 'frozen_stages must lie in -1 to 4, got 5'),
        (dict(in_channels=0), 'in_channels must be at least 1, got 0'),
        (dict(window_padding='reflect'), "window_padding must be one of .* got 'reflect'"),
        (dict(drop_path_rate=1.0), r'drop_path_rate must lie in \[0, 1\), got 1.0'),
        (dict(drop_rate=-0.1), r'drop_rate must lie in \[0, 1\), got -0.1'),
        (dict(attn_drop_rate=2), r'attn_drop_rate must lie in \[0, 1\), got 2'),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        TwinsSVT(**arguments)


def test_unknown_field_of_an_arch() -> None:
    with pytest.raises(TypeError, match=r"arch: .*'depths'.*; the fields of TwinsSVTArch are"):
        TwinsSVT(dict(TINY, depths=(2, 2, 2, 2)))


def test_archs_name_the_block_order_of_the_authors_code() -> None:
    assert ARCHS['small'].stages == ('LG', 'LG', 'LGLGLGLGLG', 'LGLG')
    assert ARCHS['vit-pytorch'].stages[3] == 'GGGGG'
