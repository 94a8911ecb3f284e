"""`create_model(pretrained=...)`, stems for other channels, and weights by name in a config."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch import Tensor, nn

from mmvit_backbones import create_model, list_pretrained, load_checkpoint
from mmvit_backbones.checkpoints.download import Address, DownloadError
from tests.checkpoints.conftest import Server
from tests.utils import assert_same, max_error, randomize

SMALL = {'twins_svt_small': 'twins_svt_small', 'xcit_nano_12_p16': 'xcit_nano_12_p16_224'}


@pytest.fixture(scope='module')
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Path]]:
    """Models of timm and their files."""
    models = {}
    for name, theirs in SMALL.items():
        path = tmp_path_factory.mktemp(name) / 'model.safetensors'
        model = randomize(timm.create_model(theirs)).eval()
        save_file(model.state_dict(), path)
        models[name] = (model.double(), path)
    return models


@pytest.fixture
def zoo(
    theirs: dict[str, tuple[nn.Module, Path]], server: Server, monkeypatch: pytest.MonkeyPatch
) -> dict[str, nn.Module]:
    """The default files of the smallest models on the local server, made from timm's models."""
    files = {}
    for name, (_, path) in theirs.items():
        folder = server.folder / name
        folder.mkdir()
        os.link(path, folder / path.name)
        file = list_pretrained()[f'{name}.in1k']
        addresses = (Address(f'{server.url}{name}/{path.name}'),)
        files |= dict.fromkeys((name, file.name), replace(file, addresses=addresses))
    monkeypatch.setattr('mmvit_backbones.checkpoints.reading.find_public_file', files.get)
    return {name: model for name, (model, _) in theirs.items()}


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double().eval()(x.double())


def test_classifier(zoo: dict[str, nn.Module]) -> None:
    name, x = 'xcit_nano_12_p16', torch.randn(1, 3, 64, 64)
    expected = logits(zoo[name], x)
    for pretrained in (True, 'in1k'):
        model = create_model(name, num_classes=1000, pretrained=pretrained)
        assert max_error(logits(model, x), expected) < 1e-9
    features = create_model(name, num_classes=0, pretrained=True)
    other = create_model(name, num_classes=5, pretrained=True)
    with torch.no_grad():
        assert torch.equal(logits(features, x), other.double().eval().features(x.double()))


def test_backbone(zoo: dict[str, nn.Module]) -> None:
    for name, theirs in zoo.items():
        model = create_model(name, pretrained=True)
        weights = theirs.state_dict()
        given = [key for key in model.state_dict() if key in weights]
        assert len(given) > 0.8 * len(model.state_dict())
        assert all(torch.equal(model.state_dict()[key].double(), weights[key]) for key in given)


def test_wrong_tags() -> None:
    with pytest.raises(
        ValueError, match=r"a tag of 'xcit_nano_12_p8', one of \['in1k', 'dist_in1k"
    ):
        create_model('xcit_nano_12_p8', pretrained='in22k')
    with pytest.raises(ValueError, match="'twins_svt_vit_pytorch', which has no public weights"):
        create_model('twins_svt_vit_pytorch', pretrained=True)
    with pytest.raises(ValueError, match='has no public weights'):
        create_model('xcit_vit_pytorch', pretrained=True)


@pytest.mark.parametrize(
    ('name', 'channels'),
    [*(('xcit_nano_12_p16', channels) for channels in (1, 2, 4, 13)), ('twins_svt_small', 4)],
)
def test_stem_is_timms(name: str, channels: int, zoo: dict[str, nn.Module], server: Server) -> None:
    """The same bits as timm's loader makes of the same file."""
    path = server.folder / name / 'model.safetensors'
    theirs = timm.create_model(
        SMALL[name],
        pretrained=True,
        in_chans=channels,
        pretrained_cfg_overlay=dict(file=str(path), hf_hub_id=None),
    )
    ours = create_model(name, num_classes=1000, in_channels=channels)
    report = load_checkpoint(ours, f'{name}.in1k')
    assert len(report.adapted) == 1
    assert report.notes == (f'stem adapted from 3 to {channels} channels',)
    assert report.missing == report.unexpected == ()
    stem = report.adapted[0]
    assert torch.equal(ours.state_dict()[stem], theirs.state_dict()[stem.removeprefix('backbone.')])
    x = torch.randn(1, channels, *[64 if name.startswith('xcit') else 224] * 2)
    assert max_error(logits(ours, x), logits(theirs, x)) < 1e-9


def test_stem_that_cannot_be_adapted() -> None:
    one = create_model('xcit_nano_12_p16', in_channels=1).state_dict()
    with pytest.raises(
        ValueError, match=r'other shapes .*patch_embed.proj.0.0.weight \(16, 1, 3, 3'
    ):
        load_checkpoint(create_model('xcit_nano_12_p16', in_channels=4), one)


def test_config(zoo: dict[str, nn.Module]) -> None:
    cfg = dict(type='mmvit_backbones.Pretrained', checkpoint='twins_svt_small.in1k')
    model = MODELS.build(dict(type='mmvit_backbones.TwinsSVT', arch='small', init_cfg=cfg))
    model.init_weights()
    expected = zoo['twins_svt_small'].state_dict()['blocks.3.3.mlp.fc2.weight']
    assert torch.equal(model.state_dict()['blocks.3.3.mlp.fc2.weight'].double(), expected)


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of an empty cache that reaches nothing."""

    def refuse(*_: object) -> None:
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path))
    for proxy in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(DownloadError) as caught:
        create_model('twins_svt_small', pretrained=True)
    message = str(caught.value)
    assert message.startswith("'twins_svt_small.in1k' could not be downloaded. Tried:")
    for address in list_pretrained()['twins_svt_small.in1k'].addresses:
        assert message.count(address.url) == 2
    assert 'name resolution' in message
    assert f'kept in {tmp_path}/checkpoints (MMVIT_HOME or TORCH_HOME moves it)' in message


@MODELS.register_module()
class RankModel(BaseModel):
    """A classifier whose head has no weights in the file."""

    def __init__(self, backbone: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(128, 3)

    def forward(self, inputs: list, data_samples: object = None, mode: str = 'tensor') -> Tensor:
        return self.head(self.backbone(torch.stack(inputs))[-1].mean((2, 3)))


def start_rank(rank: int, url: str, folder: Path) -> None:
    """Start a runner as one of two processes and keep the weights it starts from."""
    warnings.simplefilter('ignore')  # MMEngine's about threads
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2
    )
    os.environ['LOCAL_RANK'] = str(rank)
    init_cfg = dict(type='mmvit_backbones.Pretrained', checkpoint=url)
    runner = Runner(
        model=dict(
            type='RankModel',
            backbone=dict(type='mmvit_backbones.XCiT', arch='nano-12', init_cfg=init_cfg),
        ),
        work_dir=str(folder),
        train_dataloader=dict(
            batch_size=1,
            dataset=[dict(inputs=torch.ones(3, 32, 32))] * 4,
            sampler=dict(type='DefaultSampler'),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=0),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        default_hooks=dict(checkpoint=None),
        launcher='pytorch',
        randomness=dict(seed=1, diff_rank_seed=True),
        cfg=dict(model_wrapper_cfg=dict(device_ids=None)),
    )
    runner.train()
    weights = {k.removeprefix('module.'): v for k, v in runner.model.state_dict().items()}
    torch.save(weights, folder / f'rank{rank}.pth')
    torch.distributed.barrier()


@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_all_ranks_start_from_the_file(zoo: dict, server: Server, tmp_path: Path) -> None:
    """Two processes, different random seeds: the same weights in both, those of the file."""
    server.delay = 0.5
    url = f'{server.url}xcit_nano_12_p16/model.safetensors'
    fork = multiprocessing.get_context('fork')  # everything is imported there
    ranks = [fork.Process(target=start_rank, args=(i, url, tmp_path)) for i in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert server.requests == ['/xcit_nano_12_p16/model.safetensors']
    first, second = (torch.load(tmp_path / f'rank{i}.pth', weights_only=True) for i in range(2))
    assert_same(first, second)
    expected = zoo['xcit_nano_12_p16'].state_dict()
    backbone = [key for key in first if key.startswith('backbone.')]
    given = [key for key in backbone if key.removeprefix('backbone.') in expected]
    assert len(given) > 300
    for key in given:
        value = expected[key.removeprefix('backbone.')]
        assert torch.equal(first[key], value.to(first[key].dtype)), key
