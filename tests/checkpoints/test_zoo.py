"""Public files: every entry fits its model, and what the sources hold loads strictly by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mmseg
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmvit_backbones import create_model, list_models, list_pretrained, load_checkpoint
from mmvit_backbones.backbones.base import resolve_arch
from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.description import PublicFile
from mmvit_backbones.checkpoints.download import Address, file_sha256
from mmvit_backbones.checkpoints.networks import NETWORKS, network_of_model
from mmvit_backbones.checkpoints.zoo import file_table, model_table
from mmvit_backbones.complexity import count_multiply_adds, count_parameters
from tests.checkpoints.conftest import Server
from tests.checkpoints.peers import (
    mmpretrain_classifier,
    mmpretrain_logits,
    mmseg_backbone,
    official_xcit,
    set_epsilons,
    timm_xcit,
    without_values,
)
from tests.utils import max_error, randomize

ROOT = Path(__file__).parents[2]
FILES = list_pretrained()
WHOLE = [name for name in FILES if name.startswith(('mask_rcnn', 'sem_fpn', 'upernet'))]
BACKBONES = [name for name in FILES if name not in WHOLE]
# Reported by mmpretrain's metafiles, in 10^9 at 224 x 224.
REPORTED = {
    'twins_svt_small': 2.82,
    'twins_svt_base': 8.35,
    'twins_svt_large': 14.82,
    'xcit_nano_12_p8': 2.157,
    'xcit_nano_12_p16': 0.557,
    'xcit_tiny_12_p8': 4.807,
    'xcit_tiny_12_p16': 1.240,
    'xcit_tiny_24_p8': 9.206,
    'xcit_tiny_24_p16': 2.339,
    'xcit_small_12_p8': 18.692,
    'xcit_small_12_p16': 4.815,
    'xcit_small_24_p8': 35.812,
    'xcit_small_24_p16': 9.095,
    'xcit_medium_24_p8': 63.525,
    'xcit_medium_24_p16': 16.130,
    'xcit_large_24_p8': 141.226,
    'xcit_large_24_p16': 35.856,
}
COSTS = {name: cost for network in NETWORKS.values() for name, cost in network.costs.items()}


@pytest.mark.parametrize('name', COSTS)
def test_costs(name: str) -> None:
    with without_values():
        model = create_model(name, num_classes=1000)
    parameters, multiply_adds = COSTS[name]
    assert parameters == count_parameters(model)
    counted = count_multiply_adds(model, 224, 224)
    if name.startswith('twins'):
        assert counted == multiply_adds
    else:  # class attention projects all tokens to queries, as in the authors' code
        assert multiply_adds < counted < 1.02 * multiply_adds


@pytest.mark.parametrize('name', ['xcit_nano_12_p8', 'xcit_medium_24_p16'])
def test_same_counter_on_timms_model(name: str) -> None:
    with without_values():
        model = timm.create_model(f'{name}_224')
    parameters, multiply_adds = COSTS[name]
    assert count_parameters(model) == parameters
    assert abs(count_multiply_adds(model, 224, 224) / multiply_adds - 1) < 0.005


@pytest.mark.parametrize('name', REPORTED)
def test_costs_are_near_what_is_reported(name: str) -> None:
    """Reported numbers leave out attention (Twins-SVT) or count norms and activations (XCiT)."""
    assert 0.98 < COSTS[name][1] / (REPORTED[name] * 1e9) < 1.04


def test_numbers_of_files() -> None:
    """As many as the sources list: 3 sizes twice, 42, 4 twice, 3; 6 and 24 whole models."""
    assert len(BACKBONES) == 2 * 3 + 42 + 2 * 4 + 3
    assert len(WHOLE) == 6 + 24
    urls = [address.url for file in FILES.values() for address in file.addresses]
    assert len(set(urls)) == len(urls)
    hashed = [a for file in FILES.values() for a in file.addresses if a.sha256]
    # mmpretrain's 45, three of them on two hosts; mmsegmentation's 3 and 6.
    assert len(hashed) == 45 + 3 + 3 + 6
    assert all(len(a.sha256) == 8 and a.url.endswith(f'-{a.sha256}.pth') for a in hashed)


def test_timm_knows_its_names() -> None:
    known = set(timm.list_pretrained('twins_svt*') + timm.list_pretrained('xcit*'))
    urls = [address.url for file in FILES.values() for address in file.addresses]
    hub = [url for url in urls if url.startswith('https://huggingface.co/timm/')]
    assert {url.split('/')[4] for url in hub} == known


@pytest.mark.parametrize('name', FILES)
def test_input_size(name: str) -> None:
    """The size of classifiers is timm's, where timm has the file."""
    file = FILES[name]
    assert file.model in list_models()
    hub = [a.url.split('/')[4] for a in file.addresses if 'huggingface.co/timm' in a.url]
    for theirs in hub:
        cfg = timm.get_pretrained_cfg(theirs)
        assert cfg.input_size == (3, file.input_size, file.input_size)
        assert cfg.num_classes == file.num_classes
        assert cfg.license == file.licence.lower()


def source(file: PublicFile, url: str) -> nn.Module | dict[str, tuple[int, ...]]:
    """The source's own model of an address, or the names and shapes that it documents."""
    network = network_of_model(file.model)
    options = network.models[file.model]
    arch, patch_size = resolve_arch(options['arch'], network.archs), options.get('patch_size', 16)
    if 'huggingface.co/timm' in url:
        return timm.create_model(url.split('/')[4].split('.')[0])
    if '/mmclassification/' in url:
        return mmpretrain_classifier(arch, patch_size, 1000)
    if '/mmsegmentation/' in url:
        return mmseg_backbone(arch)
    if 'robustbench' in url:
        return timm_xcit(arch, patch_size, 1000)
    shapes = official_xcit(arch, patch_size, 1000)
    is_headless = file.num_classes == 0
    return {k: s for k, s in shapes.items() if not (is_headless and k.startswith('head.'))}


def weights_of(model: nn.Module | dict[str, tuple[int, ...]], url: str) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        weights = dict(model.state_dict())
    else:
        holder = nn.Module()
        for i, shape in enumerate(model.values()):
            value = torch.zeros(shape) if shape else torch.tensor(7)
            holder.register_buffer(str(i), value)
        weights = dict(zip(model, randomize(holder).buffers(), strict=True))
    if '/pretrain/twins/' in url:  # hosted with the authors' final norm, without output norms
        weights = {k: v for k, v in weights.items() if not k.startswith('norm_list')}
        last = weights['layers.3.0.norm1.weight']
        weights |= {f'norm.{kind}': torch.ones_like(last) for kind in ('weight', 'bias')}
    return weights


@contextmanager
def without_copies() -> Iterator[None]:
    """Load names and shapes: there are no values to copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, 'copy_', lambda self, *_: self)
        yield


def meta_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return a weight without values; BatchNorm counts its batches in integers."""
    dtype = torch.int64 if key.endswith('num_batches_tracked') else torch.float32
    return torch.empty(shape, dtype=dtype, device='meta')


@pytest.mark.parametrize('name', BACKBONES)
def test_every_address_at_full_size(name: str) -> None:
    """Names and shapes of every source fill the model, without values."""
    file = FILES[name]
    for address in file.addresses:
        with without_values():
            theirs = source(file, address.url)
            if isinstance(theirs, dict):
                weights = {k: meta_tensor(k, shape) for k, shape in theirs.items()}
            else:
                weights = weights_of(theirs, address.url)
            classifier = create_model(file.model, num_classes=1000)
            backbone = create_model(file.model)
        has_head = file.num_classes == 1000
        with without_copies():
            report = load_checkpoint(classifier, weights)
            assert report.missing == (() if has_head else ('head.fc.weight', 'head.fc.bias'))
            assert report.notes == (() if has_head else ('the source has no head',))
            assert report.unexpected == ()
            dense = load_checkpoint(backbone, weights)
        assert {key.split('.')[0] for key in dense.missing} <= {'norm_list', 'pyramid'}
        assert {key.split('.')[0] for key in dense.unexpected} <= {'neck', 'head'}


def serve(
    server: Server,
    name: str,
    urls: list[str],
    weights: dict[str, Tensor],
    patch: pytest.MonkeyPatch,
) -> None:
    """Put a public name's file on the local server, with the right hash."""
    suffix = Path(urls[0]).suffix
    url = server.save(f'{Path(urls[0]).stem}{suffix}', weights)
    digits = file_sha256(server.folder / url.removeprefix(server.url))
    file = replace(FILES[name], addresses=(Address(url, digits[:8]),))
    patch.setattr('mmvit_backbones.checkpoints.reading.find_public_file', lambda _: file)


SERVED = [
    (name, i)
    for name in (
        'twins_svt_small.in1k',
        'twins_svt_small.in1k_mmseg',
        'xcit_nano_12_p16.in1k',
        'xcit_nano_12_p8.dist_in1k_384',
        'xcit_small_12_p16.dino',
        'xcit_small_12_p8.xcit_dino',
        'xcit_small_12_p16.robust_in1k',
        'xcit_medium_12_p16.robust_in1k',
    )
    for i in range(len(FILES[name].addresses))
    if 'mmassets.onedl.ai' not in FILES[name].addresses[i].url
]


@pytest.mark.parametrize(('name', 'i'), SERVED)
def test_file_by_name(name: str, i: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the source's model through the server gives the source's outputs."""
    file, url = FILES[name], FILES[name].addresses[i].url
    theirs = source(file, url)
    if isinstance(theirs, nn.Module):
        randomize(theirs).eval()
    weights = weights_of(theirs, url)
    if 'dl.fbaipublicfiles.com/xcit' in url:
        content = {'model': weights, 'epoch': 399}
    else:
        content = {'state_dict': weights} if '.pth' in url else weights
    serve(server, name, [url], content, monkeypatch)
    if '/pretrain/twins/' in url:
        ours: nn.Module = create_model(file.model, out_norm=False)
        report = load_checkpoint(ours, name)
        set_epsilons(theirs)
        for norm in theirs.norm_list:
            norm.register_forward_hook(lambda _, args, out: args[0])
    else:
        classes = 1000 if file.num_classes else 0
        ours = create_model(file.model, num_classes=classes)
        report = load_checkpoint(ours, name)
        assert report.unexpected == ()
    assert (report.missing, report.adapted) == ((), ())
    if isinstance(theirs, dict):  # timm is the judge of values in the authors' names
        names = {'pos_embeder.': 'pos_embed.'}
        theirs_model = timm.create_model(
            f'{file.model}_224', num_classes=1000 if file.num_classes else 0
        )
        renamed = {}
        for key, value in weights.items():
            for old, new in names.items():
                key = key.replace(old, new)
            if 'cls_attn_blocks' in key and '.qkv.' in key:
                for part, rows in zip('qkv', value.chunk(3), strict=True):
                    renamed[key.replace('qkv', part)] = rows
            else:
                renamed[key] = value
        theirs_model.load_state_dict(renamed, strict=True)
        theirs = theirs_model.eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    ours.double().eval()
    theirs.double()
    with torch.no_grad():
        expected = mmpretrain_logits(theirs, x) if '/mmclassification/' in url else theirs(x)
        actual = ours(x)
    pairs = (
        [(actual, expected)] if isinstance(actual, Tensor) else zip(actual, expected, strict=True)
    )
    for a, b in pairs:
        assert max_error(a, b) < 1e-9 * max(1, float(b.abs().max()))


def our_config(name: str) -> Path:
    """Our config of a whole model."""
    file = FILES[name]
    method = name.partition(f'_{file.model}')[0]
    if file.model.startswith('twins'):
        size = f'twins_svt-{file.model.split("_")[2][0]}_'
    else:
        _, size, depth, patch = file.model.split('_')
        size = f'xcit-{size[0]}{depth}-{patch}_'
    (path,) = (p for p in (ROOT / f'configs/{method}').glob('*.py') if size in p.name)
    return path


def build(path: Path) -> nn.Module:
    cfg = Config.fromfile(path)
    scope = cfg.default_scope
    registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    model = cfg.model
    for key in ('pretrained', 'init_cfg'):
        model.pop(key, None)
        model.backbone.pop(key, None)
    with DefaultScope.overwrite_default_scope(scope):
        return registry.build(model)


def mmseg_config(name: str) -> Path:
    """Mmsegmentation's own config of one of its files."""
    method, size = name.split('_twins_svt_')
    head = {'upernet': 'uperhead_8xb2-160k', 'sem_fpn': 'fpn_fpnhead_8xb4-80k'}[method]
    folder = Path(mmseg.__file__).parent / '.mim/configs/twins'
    return folder / f'twins_svt-{size[0]}_{head}_ade20k-512x512.py'


def authors_names(name: str, ours: nn.Module) -> dict[str, Tensor]:
    """Names in the XCiT authors' file of a whole model: their list, and the toolkit's heads."""
    file = FILES[name]
    network = network_of_model(file.model)
    options = network.models[file.model]
    arch, patch_size = network.archs[options['arch']], options['patch_size']
    shapes = official_xcit(arch, patch_size, 1000)
    outside = ('cls_token', 'cls_attn_blocks.', 'norm.', 'head.')
    shapes = {k: shape for k, shape in shapes.items() if not k.startswith(outside)}
    dims = arch.embed_dims
    for conv in ('fpn1.0', 'fpn1.3', 'fpn2.0') if patch_size == 16 else ('fpn1.0',):
        shapes |= {f'{conv}.weight': (dims, dims, 2, 2), f'{conv}.bias': (dims,)}
    if patch_size == 16:
        shapes |= {
            f'fpn1.1.{key}': (dims,) for key in ('weight', 'bias', 'running_mean', 'running_var')
        }
        shapes['fpn1.1.num_batches_tracked'] = ()
    others = {k: v for k, v in ours.state_dict().items() if not k.startswith('backbone.')}
    backbone = {f'backbone.{key}': meta_tensor(key, shape) for key, shape in shapes.items()}
    return {**backbone, **others}


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
@pytest.mark.parametrize('name', WHOLE)
def test_whole_model_at_full_size(name: str) -> None:
    """Names and shapes of the source's model fill ours of our own config, without values."""
    with without_values():
        ours = build(our_config(name))
        theirs = mmseg_config(name.split('.')[0]) if 'twins' in name else None
        weights = dict(build(theirs).state_dict()) if theirs else {}
    if theirs is None:
        weights = authors_names(name, ours)
    with without_copies():
        report = load_checkpoint(ours, weights)
    assert report.missing == ()
    assert report.unexpected == ()
    assert len(report.loaded) == len(ours.state_dict())


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
@pytest.mark.parametrize('name', ['upernet_twins_svt_small', 'sem_fpn_twins_svt_small'])
def test_whole_segmentor_by_name(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of mmsegmentation's own segmentor gives the same logits in ours."""
    from mmengine.model import revert_sync_batchnorm

    theirs = randomize(revert_sync_batchnorm(build(mmseg_config(name)))).eval()
    url = FILES[f'{name}.ade20k'].addresses[0].url
    content = {'meta': {}, 'state_dict': theirs.state_dict()}
    serve(server, f'{name}.ade20k', [url], content, monkeypatch)
    ours = revert_sync_batchnorm(build(our_config(f'{name}.ade20k'))).eval()
    report = load_checkpoint(ours, f'{name}.ade20k')
    assert (report.dialect, report.missing, report.unexpected) == ('mmseg', (), ())
    set_epsilons(theirs.backbone)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = ours.double()(x), theirs.double()(x)
    assert max_error(actual, expected) < 1e-9 * max(1, float(expected.abs().max()))


def test_names_and_tags() -> None:
    assert list(list_pretrained('twins_svt_small')) == [
        'twins_svt_small.in1k',
        'twins_svt_small.in1k_mmseg',
    ]
    assert list(list_pretrained('upernet_twins_svt_small')) == ['upernet_twins_svt_small.ade20k']
    assert list_pretrained('twins_svt_vit_pytorch') == {}
    text = str(FILES['xcit_small_12_p16.dist_in1k_384'])
    assert text.startswith('xcit_small_12_p16.dist_in1k_384: 384 px, top-1 84.7 (https://github')
    with pytest.raises(ValueError, match=r"got 'twins_svt_smal'; did you mean twins_svt_small"):
        list_pretrained('twins_svt_smal')


def test_unknown_name_of_weights() -> None:
    model = create_model('xcit_nano_12_p16')
    with pytest.raises(
        FileNotFoundError, match=r"'xcit_nano_12_p16.in22k'; did you mean xcit_nano"
    ):
        load_checkpoint(model, 'xcit_nano_12_p16.in22k')


def test_name_of_another_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = create_model('xcit_nano_12_p16', num_classes=1000).state_dict()
    serve(server, 'xcit_nano_12_p16.in1k', ['a/model.pth'], weights, monkeypatch)
    with pytest.raises(
        CheckpointError, match='weights are xcit_nano_12_p16, the model is xcit_nan'
    ):
        load_checkpoint(create_model('xcit_nano_12_p8'), 'xcit_nano_12_p16.in1k')


def test_tables_are_those_of_the_descriptions() -> None:
    page = (ROOT / 'docs' / 'zoo.md').read_text()
    for name, table in (('models', model_table()), ('weights', file_table())):
        assert f'<!-- {name} -->\n{table}\n<!-- end -->' in page
