"""Pictures of feature maps, attention and receptive fields show the numbers of the layers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mmvit_backbones import TwinsSVT, XCiT
from mmvit_backbones import visualization as vis
from mmvit_backbones.layers.cross_covariance_attention import channel_attention_weights
from mmvit_backbones.visualization import token_attention
from mmvit_backbones.visualization.receptive_fields import radius_of
from tests.models import SMALL_CLASSIFIERS, SMALL_TWINS, TWINS, XCIT
from tests.utils import randomize

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sample() -> vis.Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (72, 104, 3), np.uint8)
    return vis.Sample('noise', pixels)


def panels(figure: Figure) -> dict[str, np.ndarray]:
    """Title -> values of the topmost image of each panel."""
    return {
        axis.get_title(): np.asarray(axis.get_images()[-1].get_array())
        for axis in figure.axes
        if axis.get_images() and axis.get_title()
    }


def test_pca_gives_each_kind_of_token_a_colour_of_its_own() -> None:
    kinds = torch.randn(3, 16, generator=torch.manual_seed(0))  # three kinds span two components
    layout = torch.randint(0, 3, (6, 9), generator=torch.manual_seed(1))
    colours, share = vis.pca_colours(kinds[layout].permute(2, 0, 1))
    assert share == pytest.approx(1)
    assert colours.shape == (6, 9, 3)
    assert float(colours.min()) >= 0
    assert float(colours.max()) <= 1
    means = torch.stack([colours[layout == kind].mean(dim=0) for kind in range(3)])
    for kind in range(3):
        assert torch.allclose(colours[layout == kind], means[kind], atol=1e-6)
    assert float(torch.pdist(means).min()) > 0.5


def test_pca_of_a_constant_map_is_one_colour() -> None:
    colours, _ = vis.pca_colours(torch.ones(2, 4, 4))
    assert float(colours.std(dim=(0, 1)).max()) == 0


@pytest.mark.parametrize(('network', 'arch'), [(TwinsSVT, TWINS), (XCiT, XCIT)])
def test_pyramid_has_a_panel_for_each_map(network: type, arch: dict, sample: vis.Sample) -> None:
    backbone = network(arch).train()
    found = panels(vis.draw_pyramid(backbone, sample))
    assert len(found) == 5
    assert backbone.training
    title = next(title for title in found if title.startswith('stride 8:'))
    assert '9 x 13' in title
    assert found[title].shape == (9, 13, 3)


def test_class_attention_shows_the_weights(sample: vis.Sample) -> None:
    model = randomize(SMALL_CLASSIFIERS['xcit-classifier']()).eval()
    found = panels(vis.draw_class_attention(model, sample, layer=0))
    attn = model.neck.cls_attn_blocks[0].attn
    weights = []
    attn.attn_drop.register_forward_hook(lambda module, inputs, out: weights.append(out))
    with torch.no_grad():
        model(sample.input)
    expected = weights[0][0, :, 0, 1:].reshape(2, 5, 7) * 36  # of 1 + 5 x 7 tokens
    for head in range(2):
        np.testing.assert_allclose(found[f'head {head}'], expected[head], rtol=1e-4)
    np.testing.assert_allclose(found['mean of all heads'], expected.mean(dim=0), rtol=1e-4)
    with pytest.raises(ValueError, match=r'layer must lie in -2 to 1, got 2'):
        vis.draw_class_attention(model, sample, layer=2)
    with pytest.raises(ValueError, match='exactly one ClassAttentionPooling'):
        vis.draw_class_attention(model.backbone, sample)


def test_channel_attention_shows_the_weights(sample: vis.Sample) -> None:
    backbone = randomize(XCiT(XCIT)).eval()
    figure = vis.draw_channel_attention(backbone, sample, block=1, head=1, channel=3)
    found = panels(figure)
    inputs = []
    attn = backbone.blocks[1].attn
    attn.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        backbone(sample.input)
        q, k, v = attn.qkv(inputs[0]).reshape(35, 3, 2, 8).permute(1, 2, 3, 0)
        weights = channel_attention_weights(q, k, attn.temperature)
    for head in range(2):
        shown = found[f'head {head}: 8 x 8 channels']
        np.testing.assert_allclose(shown, weights[head], rtol=1e-3, atol=1e-6)
    output = weights[1, 3] @ v[1]
    shown = found['output: weighted values']
    np.testing.assert_allclose(shown.ravel(), output / output.abs().max(), atol=1e-4)
    best = int(weights[1, 3].argmax())
    np.testing.assert_allclose(
        found[f'key {best}: weight {float(weights[1, 3, best]):.2f}'].ravel(),
        k[1, best] / k[1, best].abs().max(),
        atol=1e-4,
    )
    with pytest.raises(ValueError, match=r'channel must lie in -8 to 7, got 8'):
        vis.draw_channel_attention(backbone, sample, channel=8)


def test_window_attention_stands_where_the_window_is() -> None:
    layer = TwinsSVT(SMALL_TWINS, out_indices=(0,)).blocks[0][0].attn  # windows of 7 x 7
    weights = torch.zeros(6, 1, 49, 49)  # a grid of 10 x 15 tokens has 2 x 3 windows
    # The token in row 8, column 9 lies in row 1, column 2 of the window in the middle below.
    weights[4, 0, 1 * 7 + 2, 2 * 7 + 6] = 1
    attended = token_attention._attended(layer, weights, (10, 15), (8, 9), stride=4)
    assert attended.shares.shape == (3, 7)  # what of the window lies in the grid
    canvas = token_attention._on_image(attended, (38, 58))
    expected = np.full((38, 58), np.nan)
    expected[28:38, 28:56] = 0
    expected[36:38, 52:56] = 21  # row 2 and column 6 of the window; all of 21 keys
    np.testing.assert_array_equal(canvas, expected)


def test_global_attention_stands_where_the_keys_are() -> None:
    layer = TwinsSVT(SMALL_TWINS, out_indices=(0,)).blocks[0][1].attn  # one key for 4 x 4 tokens
    weights = torch.zeros(1, 2, 150, 12)  # 10 x 15 tokens, 3 x 4 keys
    weights[0, 0, 8 * 15 + 9, 4 + 3] = 1  # one of two heads: the key in row 1, column 3
    attended = token_attention._attended(layer, weights, (10, 15), (8, 9), stride=4)
    canvas = token_attention._on_image(attended, (38, 58))
    expected = np.zeros((38, 58))
    expected[16:32, 48:58] = 6  # half of the attention, of 12 keys
    np.testing.assert_array_equal(canvas, expected)


def test_token_attention_has_both_kinds_of_each_stage(sample: vis.Sample) -> None:
    backbone = TwinsSVT(SMALL_TWINS, out_indices=(0, 1))
    figure = vis.draw_token_attention(backbone, sample, pixel=(103, 71))
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == [
        'stage 1, window: 4 x 5 keys',
        'stage 2, window: 2 x 6 keys',
        'stage 1, global: 5 x 7 keys',
        'stage 2, global: 9 x 13 keys',
    ]
    for shown in panels(figure).values():
        assert np.nanmean(shown) == pytest.approx(1, rel=0.2)
    with pytest.raises(ValueError, match=r'image of 104 x 72 px, got \(104, 0\)'):
        vis.draw_token_attention(backbone, sample, pixel=(104, 0))


def test_receptive_field_of_one_window_is_the_window() -> None:
    arch = dict(SMALL_TWINS, stages=('L', 'L'))
    backbone = randomize(TwinsSVT(arch, out_indices=(0,)))
    images = torch.randn(2, 3, 96, 96, generator=torch.manual_seed(0))
    (field,) = vis.receptive_field(backbone, images)
    # Token (12, 12) of 24 x 24 and its neighbours lie in the window of tokens 7 to 13.
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[28:56, 28:56] = True
    assert bool((field[inside] > 0).all())
    assert float(field[~inside].abs().max()) == 0


def test_radius_holds_the_share() -> None:
    field = torch.zeros(41, 41)
    field[20, 20], field[20, 30], field[5, 20] = 0.5, 0.3, 0.2
    for share, radius in ((0.4, 0), (0.7, 10), (0.95, 15)):
        assert radius_of(field, share, (20.5, 20.5)) == radius


def test_receptive_field_needs_images_of_one_size(sample: vis.Sample) -> None:
    figure = vis.draw_receptive_field(XCiT(dict(XCIT, depth=5), 8), [sample])
    assert len(panels(figure)) == 4
    other = vis.Sample('other', sample.pixels[:64])
    with pytest.raises(ValueError, match='images of one size'):
        vis.draw_receptive_field(XCiT(XCIT), [sample, other])


def test_grad_cam_without_its_package(sample: vis.Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ImportError, match='pip install grad-cam'):
        vis.draw_grad_cam(SMALL_CLASSIFIERS['xcit-classifier'](), sample)


@pytest.mark.parametrize('name', sorted(SMALL_CLASSIFIERS))
def test_grad_cam_of_classifiers(name: str, sample: vis.Sample) -> None:
    pytest.importorskip('pytorch_grad_cam')
    model = randomize(SMALL_CLASSIFIERS[name]()).eval()
    figure = vis.draw_grad_cam(model, sample, classes=[1, 4], names='abcdefg')
    found = panels(figure)
    assert [title[:2] for title in found] == ['im', 'b:', 'e:']
    first, second = list(found.values())[1:]
    assert first.shape == sample.size
    assert 0 < first.max() <= 1
    assert np.abs(first - second).max() > 0.1
    with pytest.raises(ValueError, match='classes must lie in'):
        vis.draw_grad_cam(model, sample, classes=[7])


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_cam_of_a_detector(sample: vis.Sample) -> None:
    pytest.importorskip('pytorch_grad_cam')
    config = ROOT / 'configs' / 'shapes' / 'retinanet_twins-svt-toy_fpn_shapes.py'
    subject = vis.load_subject(str(config))
    randomize(subject.model).test_cfg.score_thr = 0
    found = panels(vis.draw_grad_cam(subject.model, sample, names=subject.classes))
    assert len(found) > 1  # detections with the same class and score share a title
    heat = list(found.values())[1]
    assert heat.shape == sample.size
    assert 0 < heat.max() <= 1
    with pytest.raises(ValueError, match='classes must be found in the image'):
        vis.draw_grad_cam(subject.model, sample, classes=[99])
