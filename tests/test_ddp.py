"""Training steps in two processes, with DDP's strict rule that every parameter is used."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from mmvit_backbones.registry import MODELS

PROCESSES = 2
XCIT_ARCH = dict(embed_dims=16, depth=5, num_heads=2)
TWINS_ARCH = dict(
    embed_dims=(8, 12, 16, 20),
    stages=('LG', 'LG', 'LG', 'LG'),
    num_heads=(1, 2, 2, 4),
    head_dims=8,
)
BACKBONES = [
    dict(type='mmvit_backbones.TwinsSVT', arch=TWINS_ARCH),
    dict(type='mmvit_backbones.TwinsSVT', arch=TWINS_ARCH, out_indices=(1, 2), frozen_stages=1),
    dict(type='mmvit_backbones.XCiT', arch=XCIT_ARCH),
    dict(type='mmvit_backbones.XCiT', arch=XCIT_ARCH, patch_size=8, with_cp=True),
    dict(type='mmvit_backbones.XCiT', arch=XCIT_ARCH, frozen_stages=1, pyramid=False),
]


def train(rank: int, backbone: dict) -> None:
    """Two steps; the second fails if a parameter took no part in the first."""
    torch.manual_seed(rank)
    model = DistributedDataParallel(MODELS.build(backbone), find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    for _ in range(2):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(2, 3, 40, 64))).backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert after.isfinite().all()
    assert not torch.equal(after, before)
    gathered = [torch.empty_like(after) for _ in range(PROCESSES)]
    distributed.all_gather(gathered, after)
    assert torch.equal(gathered[0], gathered[1])


def run(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=rendezvous, rank=rank, world_size=PROCESSES)
    try:
        for backbone in BACKBONES:
            try:
                train(rank, backbone)
            except Exception as error:
                raise AssertionError(f'{backbone} on rank {rank}') from error
    finally:
        distributed.destroy_process_group()


def test_two_processes_without_unused_parameters(tmp_path: Path) -> None:
    """All in one pair of processes, whose start takes most of the time."""
    multiprocessing.spawn(run, args=(f'file://{tmp_path}/rendezvous',), nprocs=PROCESSES)
