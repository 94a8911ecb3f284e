"""Parameters, gradients and optimizer states divided between the processes: FSDP2 under MMEngine.

MMEngine's runner initializes, loads and resumes the model as with DDP, with whole tensors in each
process. They are sharded just before training starts, and gathered for each checkpoint, so that a
checkpoint is that of any other run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.registry import HOOKS


def shard(model: nn.Module, param_dtype: torch.dtype | None = None) -> nn.Module:
    """Shard each block of our backbones, then the rest of a model, in place.

    Needs PyTorch 2.6 and an initialized process group.

    Args:
        model: A model of any toolkit, on the device that it trains on.
        param_dtype: Dtype to compute in, such as `torch.bfloat16`; gradients are summed in float32,
            and BatchNorm computes in float32, as its running statistics are. By default all stays
            as it is.

    Returns:
        The model.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    modules = list(model.modules())
    if param_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
        norms = MixedPrecisionPolicy(param_dtype=torch.float32, output_dtype=param_dtype)
        for module in modules:
            if isinstance(module, _BatchNorm):
                fully_shard(module, mp_policy=norms)
    for module in modules:
        if isinstance(module, Backbone):
            for block in _blocks(module.blocks):
                fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def _blocks(parts: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks in a list of blocks or of stages."""
    for part in parts.children():
        yield from _blocks(part) if isinstance(part, nn.ModuleList) else (part,)


@HOOKS.register_module()
class FullyShardHook(Hook):
    """Shard the model and the optimizer's states before training, see `shard`.

    Checkpoints are whole if `SafeCheckpointHook` writes them. Hooks that compare parameters with a
    copy of their own, such as `EMAHook`, don't know sharded ones.

    Args:
        param_dtype: Name of the dtype to compute in, such as `'bfloat16'`. By default parameters
            keep theirs.

    Raises:
        ValueError: If `param_dtype` is not a floating-point dtype; at the start of training, if
            there are no several processes.
    """

    def __init__(self, param_dtype: str | None = None) -> None:
        dtype = None if param_dtype is None else getattr(torch, param_dtype, None)
        if param_dtype is not None and not (
            isinstance(dtype, torch.dtype) and dtype.is_floating_point
        ):
            raise ValueError(f"param_dtype must be a dtype such as 'bfloat16', got {param_dtype!r}")
        self.param_dtype = dtype

    def before_train(self, runner: Runner) -> None:
        """Shard the model, and let the optimizer hold the sharded parameters."""
        if not is_distributed():
            raise ValueError('FullyShardHook needs several processes, see --launcher')
        if is_model_wrapper(runner.model):
            runner.model = runner.model.module  # DDP has not run yet
        whole = dict(runner.model.named_parameters())
        shard(runner.model, self.param_dtype)
        sharded = dict(runner.model.named_parameters())
        instead = {whole[name]: sharded[name] for name in whole}
        optimizer = runner.optim_wrapper.optimizer
        for group in optimizer.param_groups:
            group['params'] = [instead[p] for p in group['params']]
        for p, state in list(optimizer.state.items()):
            optimizer.state[instead[p]] = {
                name: shard_like(instead[p], value) if value.shape == p.shape else value
                for name, value in state.items()
            }
            del optimizer.state[p]


def shard_like(parameter: Any, value: Tensor) -> Tensor:
    """Shard a whole tensor as a parameter of the same shape is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of a model is divided between processes."""
    return any(hasattr(p, 'full_tensor') for p in model.parameters())


def gather(tree: Any) -> Any:
    """Return dicts, lists and tuples with the whole of each sharded tensor, on the CPU.

    All processes must call it, with trees of the same structure.
    """
    if isinstance(tree, dict):
        return type(tree)({key: gather(value) for key, value in tree.items()})
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(gather, tree))
    full: Callable[[], Tensor] | None = getattr(tree, 'full_tensor', None)
    return tree if full is None else full().cpu()
