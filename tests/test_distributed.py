"""Training in two processes: DDP, FSDP, and runs that are killed and resumed.

All in one pair of processes, whose start takes most of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dist import barrier
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, size_based_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from mmvit_backbones.engine import FiniteLossHook, NonFiniteError, shard
from mmvit_backbones.registry import MODELS
from tests.engine.test_resume import assert_same_end, make_runner, train_until
from tests.models import SMALL, TWINS, XCIT
from tests.utils import loss_of, randomize

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6
    fully_shard = None  # type: ignore[assignment]

PROCESSES = 2
TWINS_SVT = dict(type='mmvit_backbones.TwinsSVT', arch=TWINS)
SMALL_XCIT = dict(type='mmvit_backbones.XCiT', arch=XCIT)
BACKBONES = [
    TWINS_SVT,
    dict(TWINS_SVT, out_indices=(1, 2), frozen_stages=1),
    SMALL_XCIT,
    dict(SMALL_XCIT, patch_size=8, with_cp=True),
    dict(SMALL_XCIT, frozen_stages=1, pyramid=False),
]


def check_ddp(backbone: dict) -> None:
    """Two steps; the second fails if a parameter took no part in the first."""
    torch.manual_seed(distributed.get_rank())
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


# FSDP


def wrap_by_size(model: nn.Module) -> nn.Module:
    policy = partial(size_based_auto_wrap_policy, min_num_params=200)
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device('cpu')
    )


def wrap_each_linear(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
        use_orig_params=True,
        device_id=torch.device('cpu'),
    )


def frozen_xcit() -> nn.Module:
    """With all BatchNorms in evaluation mode, the stem's frozen."""
    return SMALL['xcit'](frozen_stages=0, norm_eval=True)


SHARDED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module], float]] = {
    f'{how.__name__} {name}': (SMALL[name], how, 1e-5)
    for name in ('twins', 'xcit')
    for how in (wrap_by_size, wrap_each_linear)
}
if fully_shard is not None:
    in_bfloat16 = partial(shard, param_dtype=torch.bfloat16)
    SHARDED |= {
        'shard twins': (SMALL['twins'], shard, 1e-5),
        'shard xcit': (SMALL['xcit'], shard, 1e-5),
        'shard frozen xcit': (frozen_xcit, shard, 1e-5),
        'bfloat16 twins': (SMALL['twins'], in_bfloat16, 0.1),
        'bfloat16 xcit': (SMALL['xcit'], in_bfloat16, 0.1),
        'bfloat16 frozen xcit': (frozen_xcit, in_bfloat16, 0.1),
    }


def images(rank: int) -> Tensor:
    return torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(rank))


def updates(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters by name; those of FSDP 1 are whole inside `summon_full_params`."""
    for name, p in model.named_parameters():
        value = p.full_tensor() if hasattr(p, 'full_tensor') else p
        yield name.replace('_fsdp_wrapped_module.', ''), value.detach().clone()


def check_fsdp(
    make: Callable[[], nn.Module], shard: Callable[[nn.Module], nn.Module], tolerance: float
) -> None:
    """One step changes the parameters as the step of one process with all images does."""
    plain = randomize(make()).train()
    before = dict(updates(plain))
    model = shard(copy.deepcopy(plain))
    for rank in range(PROCESSES):
        (loss_of(plain(images(rank))) / PROCESSES).backward()
    loss_of(model(images(distributed.get_rank()))).backward()
    for each in (plain, model):
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            after = dict(updates(model))
    else:
        after = dict(updates(model))
    expected = dict(updates(plain))
    assert list(after) == list(expected)
    ours = torch.cat([(after[name] - before[name]).flatten() for name in before])
    theirs = torch.cat([(expected[name] - before[name]).flatten() for name in before])
    assert float(theirs.norm()) > 1e-3
    assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


# Random states


def check_resumed_run(folder: Path) -> None:
    """Each process goes on with its own random numbers."""
    for name, resume, kill in (
        ('whole', False, None),
        ('killed', False, 5),
        ('killed', True, None),
    ):
        torch.manual_seed(0)
        runner = make_runner(
            folder / name,
            resume=resume,
            wrap=MMDistributedDataParallel,
            launcher='pytorch',
            randomness={'seed': 0, 'diff_rank_seed': True},
        )
        if kill is None:
            runner.train()
        else:
            train_until(runner, kill)
        barrier()
    assert_same_end(folder / 'whole', folder / 'killed', 'epoch_4.pth')


def check_sharded_run(folder: Path) -> None:
    """With sharded parameters a run ends as under DDP, killed and resumed or not."""
    hooks = [{'type': 'mmvit_backbones.FullyShardHook'}]
    for name, resume, kill, hooks_ in (
        ('ddp', False, None, []),
        ('sharded', False, None, hooks),
        ('killed', False, 5, hooks),
        ('killed', True, None, hooks),
    ):
        torch.manual_seed(0)
        runner = make_runner(
            folder / name,
            resume=resume,
            wrap=MMDistributedDataParallel,
            launcher='pytorch',
            hooks=hooks_,
        )
        if kill is None:
            runner.train()
        else:
            train_until(runner, kill)
        barrier()
    assert_same_end(folder / 'sharded', folder / 'killed', 'epoch_4.pth')
    assert_same_end(folder / 'ddp', folder / 'killed', 'epoch_4.pth')


def check_sharded_loss() -> None:
    """The process whose loss is not finite says so by itself, while the other waits elsewhere."""
    model = shard(randomize(SMALL['xcit']()))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
    runner = SimpleNamespace(optim_wrapper=wrapper, model=model, iter=0, epoch=0)
    FiniteLossHook().before_train(runner)
    factor = float('nan') if distributed.get_rank() else 1.0
    loss = factor * loss_of(model(torch.randn(1, 3, 64, 64)))
    expected = pytest.raises(NonFiniteError, match='gradients are not finite')
    with expected if distributed.get_rank() else nullcontext():
        wrapper.backward(loss)
    barrier()


def checks(folder: Path) -> dict[str, Callable[[], Any]]:
    sharded = {
        'sharded run': partial(check_sharded_run, folder / 'sharded'),
        'loss under sharding': check_sharded_loss,
    }
    return {
        **{f'DDP {backbone}': partial(check_ddp, backbone) for backbone in BACKBONES},
        **{f'FSDP {name}': partial(check_fsdp, *SHARDED[name]) for name in SHARDED},
        'resumed run': partial(check_resumed_run, folder / 'resumed'),
        **(sharded if fully_shard else {}),
    }


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=PROCESSES
    )
    try:
        for name, check in checks(folder).items():
            try:
                check()
            except Exception as error:
                raise AssertionError(f'{name} on rank {rank}') from error
    finally:
        distributed.destroy_process_group()


def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=PROCESSES)
