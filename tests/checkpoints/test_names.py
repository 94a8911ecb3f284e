"""`create_model(pretrained=...)`, stems for other channels, and weights by name in a config."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmvit_backbones import create_model, list_pretrained, load_checkpoint
from mmvit_backbones.checkpoints.download import Address
from tests.checkpoints.conftest import Server
from tests.utils import max_error, randomize

ROOT = Path(__file__).parents[2]
SMALL = {'twins_svt_small': 'twins_svt_small', 'xcit_nano_12_p16': 'xcit_nano_12_p16_224'}


@pytest.fixture
def zoo(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """The default files of the smallest models on the local server, made from timm's models."""
    models = {name: randomize(timm.create_model(theirs)).eval() for name, theirs in SMALL.items()}
    files = {}
    for name, model in models.items():
        url = server.save(f'{name}/model.safetensors', model.state_dict())
        file = list_pretrained()[f'{name}.in1k']
        files |= dict.fromkeys((name, file.name), replace(file, addresses=(Address(url),)))
    monkeypatch.setattr('mmvit_backbones.checkpoints.reading.find_public_file', files.get)
    return models


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double().eval()(x.double())


@pytest.mark.parametrize('name', SMALL)
def test_classifier(name: str, zoo: dict[str, nn.Module]) -> None:
    x = torch.randn(1, 3, 224, 224)
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
        assert all(torch.equal(model.state_dict()[key], weights[key]) for key in given)


def test_wrong_tags() -> None:
    with pytest.raises(
        ValueError, match=r"a tag of 'xcit_nano_12_p8', one of \['in1k', 'dist_in1k"
    ):
        create_model('xcit_nano_12_p8', pretrained='in22k')
    with pytest.raises(ValueError, match="'twins_svt_vit_pytorch', which has no public weights"):
        create_model('twins_svt_vit_pytorch', pretrained=True)
    with pytest.raises(ValueError, match='has no public weights'):
        create_model('xcit_vit_pytorch', pretrained=True)


@pytest.mark.parametrize('channels', [1, 2, 4, 13])
@pytest.mark.parametrize('name', SMALL)
def test_stem_is_timms(name: str, channels: int, zoo: dict[str, nn.Module], tmp_path: Path) -> None:
    """The same bits as timm's loader makes of the same file."""
    from safetensors.torch import save_file

    save_file(zoo[name].state_dict(), tmp_path / 'model.safetensors')
    theirs = timm.create_model(
        SMALL[name],
        pretrained=True,
        in_chans=channels,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors'), hf_hub_id=None),
    )
    ours = create_model(name, num_classes=1000, in_channels=channels)
    report = load_checkpoint(ours, f'{name}.in1k')
    assert len(report.adapted) == 1
    assert report.notes == (f'stem adapted from 3 to {channels} channels',)
    assert report.missing == report.unexpected == ()
    stem = report.adapted[0]
    assert torch.equal(ours.state_dict()[stem], theirs.state_dict()[stem.removeprefix('backbone.')])
    x = torch.randn(1, channels, 224, 224)
    expected = logits(theirs, x)
    assert max_error(logits(ours, x), expected) < 1e-9


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
    assert torch.equal(model.state_dict()['blocks.3.3.mlp.fc2.weight'], expected)


NO_NETWORK = """
import socket
def refuse(*_):
    raise socket.gaierror(-3, 'Temporary failure in name resolution')
socket.getaddrinfo = refuse
from mmvit_backbones import create_model
create_model('twins_svt_small', pretrained=True)
"""


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a fresh environment that reaches nothing."""
    monkeypatch.setenv('MMVIT_HOME', str(tmp_path))
    for proxy in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.delenv(proxy, raising=False)
    process = subprocess.run([sys.executable, '-c', NO_NETWORK], capture_output=True, text=True)
    assert process.returncode == 1
    message = process.stderr
    assert "DownloadError: 'twins_svt_small.in1k' could not be downloaded. Tried:" in message
    for address in list_pretrained()['twins_svt_small.in1k'].addresses:
        assert message.count(address.url) == 2
    assert 'name resolution' in message
    assert f'kept in {tmp_path}/checkpoints (MMVIT_HOME or TORCH_HOME moves it)' in message


RANK = """
import sys
from pathlib import Path
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner

@MODELS.register_module()
class Model(BaseModel):
    def __init__(self, backbone, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = torch.nn.Linear(512, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.head(self.backbone(torch.stack(inputs))[-1].mean((2, 3)))
        return dict(loss=x.square().mean() * 0) if mode == 'loss' else x

torch.distributed.init_process_group('gloo')  # MMEngine's own call asks for a GPU
init_cfg = dict(type='mmvit_backbones.Pretrained', checkpoint=sys.argv[1])
backbone = dict(type='mmvit_backbones.TwinsSVT', arch='small', init_cfg=init_cfg)
runner = Runner(
    model=dict(type='Model', backbone=backbone),
    work_dir=sys.argv[2],
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
rank = torch.distributed.get_rank()
weights = {k.removeprefix('module.'): v for k, v in runner.model.state_dict().items()}
torch.save(weights, Path(sys.argv[2]) / f'rank{rank}.pth')
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_all_ranks_start_from_the_file(zoo: dict, server: Server, tmp_path: Path) -> None:
    """Two processes, different random seeds: the same weights in both, those of the file."""
    (tmp_path / 'rank.py').write_text(RANK)
    url = f'{server.url}twins_svt_small/model.safetensors'
    server.delay = 0.5
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--master_addr=127.0.0.1', '--master_port=0', '--rdzv_backend=c10d']
    command += ['--rdzv_endpoint=127.0.0.1:0', str(tmp_path / 'rank.py'), url, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    assert server.requests == ['/twins_svt_small/model.safetensors']
    first, second = (torch.load(tmp_path / f'rank{i}.pth', weights_only=True) for i in range(2))
    expected = zoo['twins_svt_small'].state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        inside = key.removeprefix('backbone.')
        if key.startswith('backbone.') and inside in expected:
            assert torch.equal(value, expected[inside]), key
