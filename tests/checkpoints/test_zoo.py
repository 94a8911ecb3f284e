"""Public files: every entry fits its model, and what the sources hold loads strictly by name."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mmpretrain
import mmseg
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmvit_backbones import create_model, list_pretrained, load_checkpoint
from mmvit_backbones.backbones.base import resolve_arch
from mmvit_backbones.checkpoints import CheckpointError
from mmvit_backbones.checkpoints.description import PublicFile
from mmvit_backbones.checkpoints.download import Address, file_sha256
from mmvit_backbones.checkpoints.networks import network_of_model
from mmvit_backbones.complexity import count_multiply_adds, count_parameters
from tests.checkpoints.conftest import Server
from tests.checkpoints.peers import (
    mmpretrain_classifier,
    mmpretrain_logits,
    mmseg_backbone,
    official_twins,
    official_xcit,
    set_epsilons,
    timm_xcit,
    without_values,
)
from tests.utils import as_maps, max_error, randomize

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


def load_tool() -> ModuleType:
    """The program that writes the tables."""
    spec = importlib.util.spec_from_file_location('zoo_tables', ROOT / 'tools/zoo_tables.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def written_costs() -> dict[str, tuple[float, float]]:
    """Model -> millions of parameters and 10^9 multiply-adds."""
    rows = re.findall(r'\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|', (ROOT / 'docs/zoo.md').read_text())
    return {model: (float(millions), float(billions)) for model, millions, billions in rows}


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the descriptions; costs, which take long to count, of a few models."""
    tool, costs = load_tool(), written_costs()
    for model in ('twins_svt_small', 'xcit_nano_12_p16', 'xcit_small_12_p4'):
        parameters, multiply_adds = tool.cost(model)
        assert costs[model] == (round(parameters / 1e6, 1), round(multiply_adds / 1e9, 2))
    written = {
        model: (millions * 1e6, billions * 1e9) for model, (millions, billions) in costs.items()
    }
    monkeypatch.setattr(tool, 'cost', written.__getitem__)
    assert tool.write_tables(check=True) == []
    monkeypatch.setattr(tool, 'model_names', lambda: ['xcit_nano_12_p16'])
    assert tool.write_tables(check=True) == ['README.md summary', 'docs/zoo.md models']


def test_costs_are_near_what_is_reported() -> None:
    """Reported numbers leave out attention (Twins-SVT) or count norms and activations (XCiT)."""
    costs = written_costs()
    assert all(0.98 < costs[name][1] / reported < 1.04 for name, reported in REPORTED.items())


def test_same_counter_on_timms_model() -> None:
    """Its class attention makes a query of the class token only."""
    parameters, multiply_adds = load_tool().cost('xcit_nano_12_p16')
    with torch.device('meta'):
        model = timm.create_model('xcit_nano_12_p16_224')
    assert count_parameters(model) == parameters
    assert 0.98 < count_multiply_adds(model, 224, 224) / multiply_adds < 1


def test_numbers_of_files() -> None:
    """As many as the sources list."""
    # 3 sizes twice; 42; 4 twice; 3 twice of ImageNet and 6 of CIFAR.
    assert len(BACKBONES) == 2 * 3 + 42 + 2 * 4 + 2 * 3 + 6
    assert len(WHOLE) == 6 + 3 + 24
    addresses = [address for file in FILES.values() for address in file.addresses]
    assert len({address.url for address in addresses}) == len(addresses)
    hashed = [address for address in addresses if address.sha256]
    # mmpretrain's 45 on two hosts; mmsegmentation's 3 and 6.
    assert len(hashed) == 2 * 45 + 3 + 6
    assert all(len(a.sha256) == 8 and a.url.endswith(f'-{a.sha256}.pth') for a in hashed)
    # ImageNet and UperNet of Twins-SVT, robust XCiT.
    assert sum(address.by_hand for address in addresses) == 3 + 3 + 12


def test_timm_knows_its_names() -> None:
    known = set(timm.list_pretrained('twins_svt*') + timm.list_pretrained('xcit*'))
    urls = [address.url for file in FILES.values() for address in file.addresses]
    hub = [url for url in urls if url.startswith('https://huggingface.co/timm/')]
    assert {url.split('/')[4] for url in hub} == known


def test_mmpretrain_knows_its_addresses() -> None:
    folder = Path(mmpretrain.__file__).parent / '.mim/configs'
    text = ''.join((folder / name / 'metafile.yml').read_text() for name in ('twins', 'xcit'))
    known = {url for url in re.findall(r'Weights: (\S+)', text) if 'pcpvt' not in url}
    addresses = {address.url for file in FILES.values() for address in file.addresses}
    assert {url for url in known if 'mmassets.onedl.ai' in url} <= addresses
    assert len({url for url in addresses if 'mmassets.onedl.ai' in url}) == 45


@pytest.mark.parametrize('name', FILES)
def test_input(name: str) -> None:
    """What classifiers take is what timm says, where timm has the file."""
    file = FILES[name]
    assert network_of_model(file.model) is not None
    hub = [a.url.split('/')[4] for a in file.addresses if 'huggingface.co/timm' in a.url]
    for theirs in hub:
        cfg = timm.get_pretrained_cfg(theirs)
        assert cfg.input_size == (3, file.input_size, file.input_size)
        assert (cfg.num_classes, cfg.mean, cfg.std) == (file.num_classes, file.mean, file.std)
        assert cfg.license == file.licence.lower()


# Who names weights alike: part of the address -> source.
SOURCES = {
    'huggingface.co/timm': 'timm',
    '/mmclassification/': 'mmpretrain',
    '/mmsegmentation/': 'mmseg',
    'dl.fbaipublicfiles.com': 'authors',
    'Twins': 'authors',
    'obust': 'robust',
}


def source_of(file: PublicFile, address: Address) -> str:
    where = file.source if address.by_hand else address.url
    return next(source for part, source in SOURCES.items() if part in where)


def source(file: PublicFile, name: str) -> nn.Module | dict[str, tuple[int, ...]]:
    """The source's own model of a file, or the names and shapes that it documents."""
    network = network_of_model(file.model)
    options = network.models[file.model]
    arch, patch_size = resolve_arch(options['arch'], network.archs), options.get('patch_size', 16)
    if name == 'mmpretrain':
        return mmpretrain_classifier(arch, patch_size, 1000)
    if name == 'mmseg':
        return mmseg_backbone(arch)
    if name == 'authors':
        is_twins = network.name == 'twins_svt'
        shapes = official_twins(arch, 1000) if is_twins else official_xcit(arch, patch_size, 1000)
        is_headless = file.num_classes == 0
        return {k: s for k, s in shapes.items() if not (is_headless and k.startswith('head.'))}
    if name == 'timm':
        pixels = '' if network.name == 'twins_svt' else f'_{file.input_size}'
        return timm.create_model(f'{file.model}{pixels}')
    return timm_xcit(arch, patch_size, file.num_classes)


def weights_of(model: nn.Module | dict[str, tuple[int, ...]], name: str) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        weights = dict(model.state_dict())
    else:
        holder = nn.Module()
        for i, shape in enumerate(model.values()):
            value = torch.zeros(shape) if shape else torch.tensor(7)
            holder.register_buffer(str(i), value)
        weights = dict(zip(model, randomize(holder).buffers(), strict=True))
    if name == 'mmseg':  # hosted with the authors' final norm, without output norms
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


# Files of one structure have one test: only values differ between, say, `in1k` and `dist_in1k`.
STRUCTURES = {
    (file.model, file.num_classes, source_of(file, address)): file
    for file in map(FILES.__getitem__, BACKBONES)
    for address in file.addresses
}


@pytest.mark.parametrize(('model', 'num_classes', 'origin'), STRUCTURES)
def test_every_file_at_full_size(model: str, num_classes: int, origin: str) -> None:
    """Names and shapes of every source fill the model, without values."""
    file = STRUCTURES[model, num_classes, origin]
    with without_values():
        theirs = source(file, origin)
        if isinstance(theirs, dict):
            weights = {k: meta_tensor(k, shape) for k, shape in theirs.items()}
        else:
            weights = weights_of(theirs, origin)
        classifier = create_model(model, num_classes=num_classes or 1000)
    with without_copies():
        report = load_checkpoint(classifier, weights)
        assert report.missing == (() if num_classes else ('head.fc.weight', 'head.fc.bias'))
        assert report.notes == (() if num_classes else ('the source has no head',))
        assert report.unexpected == ()


def serve(
    server: Server, name: str, url: str, weights: dict[str, Tensor], patch: pytest.MonkeyPatch
) -> None:
    """Put a public name's file on the local server, with the right hash."""
    local = server.save(Path(url).name, weights)
    digits = file_sha256(server.folder / Path(url).name)
    file = replace(FILES[name], addresses=(Address(local, digits[:8]),))
    patch.setattr('mmvit_backbones.checkpoints.reading.find_public_file', lambda _: file)


# The smallest of each source; test_converting has the values of every structure at toy size.
SERVED = [
    ('twins_svt_small.in1k', 'timm'),
    ('twins_svt_small.in1k_mmseg', 'mmseg'),
    ('xcit_nano_12_p16.in1k', 'timm'),
    ('xcit_nano_12_p16.in1k', 'authors'),
    ('xcit_nano_12_p8.dist_in1k_384', 'authors'),
    ('xcit_nano_12_p8.dist_in1k_384', 'mmpretrain'),
]


@pytest.mark.parametrize(('name', 'origin'), SERVED)
def test_file_by_name(
    name: str, origin: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the source's model through the server gives the source's outputs."""
    file = FILES[name]
    url = next(a.url for a in file.addresses if source_of(file, a) == origin)
    theirs = source(file, origin)
    if isinstance(theirs, nn.Module):
        randomize(theirs).eval()
    weights = weights_of(theirs, origin)
    if origin == 'authors':
        content = {'model': weights, 'epoch': 399}
    else:
        content = {'state_dict': weights} if '.pth' in url else weights
    serve(server, name, url, content, monkeypatch)
    if origin == 'mmseg':
        ours: nn.Module = create_model(file.model, out_norm=False)
        set_epsilons(theirs)
        for norm in theirs.norm_list:
            norm.register_forward_hook(lambda _, args, out: args[0])
    else:
        ours = create_model(file.model, num_classes=file.num_classes)
    report = load_checkpoint(ours, name)
    assert report.unexpected == (
        ('neck.norm.weight', 'neck.norm.bias') if origin == 'mmseg' else ()
    )
    assert (report.missing, report.adapted) == ((), ())
    if isinstance(theirs, dict):
        theirs = timm_with(file, weights)
    x = torch.randn(1, 3, *[224 if 'twins' in name else 64] * 2, dtype=torch.float64)
    ours.double().eval()
    theirs.double()
    with torch.no_grad():
        expected = mmpretrain_logits(theirs, x) if origin == 'mmpretrain' else theirs(x)
        actual = ours(x)
    for a, b in zip(as_maps(actual), as_maps(expected), strict=True):
        assert max_error(a, b) < 1e-9 * max(1, float(b.abs().max()))


def timm_with(file: PublicFile, weights: dict[str, Tensor]) -> nn.Module:
    """An XCiT of timm, the judge of values, with weights in the authors' names."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace('pos_embeder.', 'pos_embed.')
        if 'cls_attn_blocks' in key and '.qkv.' in key:
            for part, rows in zip('qkv', value.chunk(3), strict=True):
                renamed[key.replace('qkv', part)] = rows
        else:
            renamed[key] = value
    model = timm.create_model(f'{file.model}_224', num_classes=file.num_classes)
    model.load_state_dict(renamed, strict=True)
    return model.eval()


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
    method, size = name.split('.')[0].split('_twins_svt_')
    head = {'upernet': 'uperhead_8xb2-160k', 'sem_fpn': 'fpn_fpnhead_8xb4-80k'}[method]
    folder = Path(mmseg.__file__).parent / '.mim/configs/twins'
    return folder / f'twins_svt-{size[0]}_{head}_ade20k-512x512.py'


def authors_names(name: str, ours: nn.Module) -> dict[str, Tensor]:
    """Names in the authors' file of a whole model: their list, and the toolkit's heads."""
    file = FILES[name]
    shapes = source(replace(file, num_classes=0), 'authors')
    outside = ('cls_token', 'cls_attn_blocks.', 'norm.', 'head.')
    shapes = {k: shape for k, shape in shapes.items() if not k.startswith(outside)}
    shapes |= authors_pyramid(file)
    others = {k: v for k, v in ours.state_dict().items() if not k.startswith('backbone.')}
    backbone = {f'backbone.{key}': meta_tensor(key, shape) for key, shape in shapes.items()}
    return {**backbone, **others}


def authors_pyramid(file: PublicFile) -> dict[str, tuple[int, ...]]:
    """What their dense backbones have beside the blocks."""
    network = network_of_model(file.model)
    options = network.models[file.model]
    arch = network.archs[options['arch']]
    if network.name == 'twins_svt':
        sides = enumerate(arch.embed_dims)
        return {f'norm_list.{i}.{kind}': (d,) for i, d in sides for kind in ('weight', 'bias')}
    dims = arch.embed_dims
    is_coarse = options['patch_size'] == 16
    shapes: dict[str, tuple[int, ...]] = {}
    for conv in ('fpn1.0', 'fpn1.3', 'fpn2.0') if is_coarse else ('fpn1.0',):
        shapes |= {f'{conv}.weight': (dims, dims, 2, 2), f'{conv}.bias': (dims,)}
    if is_coarse:
        kinds = ('weight', 'bias', 'running_mean', 'running_var')
        shapes |= {f'fpn1.1.{kind}': (dims,) for kind in kinds}
        shapes['fpn1.1.num_batches_tracked'] = ()
    return shapes


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
@pytest.mark.parametrize('name', WHOLE)
def test_whole_model_at_full_size(name: str) -> None:
    """Names and shapes of the source's model fill ours of our own config, without values."""
    with without_values():
        ours = build(our_config(name))
        if 'mmseg' in FILES[name].source:
            weights = dict(build(mmseg_config(name)).state_dict())
        else:
            weights = authors_names(name, ours)
    with without_copies():
        report = load_checkpoint(ours, weights)
    assert report.missing == ()
    assert report.unexpected == ()
    assert len(report.loaded) == len(ours.state_dict())


@pytest.mark.filterwarnings('ignore:Default ``avg_non_ignore``')
def test_whole_segmentor_by_name(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of mmsegmentation's own segmentor gives the same logits in ours."""
    from mmengine.model import revert_sync_batchnorm

    name = 'sem_fpn_twins_svt_small.ade20k'
    theirs = randomize(revert_sync_batchnorm(build(mmseg_config(name)))).eval()
    content = {'meta': {}, 'state_dict': theirs.state_dict()}
    serve(server, name, FILES[name].addresses[0].url, content, monkeypatch)
    ours = revert_sync_batchnorm(build(our_config(name))).eval()
    report = load_checkpoint(ours, name)
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
    assert list(list_pretrained('sem_fpn_twins_svt_small')) == ['sem_fpn_twins_svt_small.ade20k']
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
    serve(server, 'xcit_nano_12_p16.in1k', 'model.pth', weights, monkeypatch)
    with pytest.raises(
        CheckpointError, match='weights are xcit_nano_12_p16, the model is xcit_nan'
    ):
        load_checkpoint(create_model('xcit_nano_12_p8'), 'xcit_nano_12_p16.in1k')
