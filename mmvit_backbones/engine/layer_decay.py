"""Layer-wise learning-rate decay: the nearer to the image, the smaller the step.

As in BEiT (https://arxiv.org/abs/2106.08254, appendix on fine-tuning): a parameter of depth d of n
learns with `lr * layer_decay_rate ** (n - 1 - d)`. The backbone itself says how deep a parameter
lies, so the same backbone gets the same scales in mmdet, mmseg and mmpretrain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _NormBase

from mmvit_backbones.checkpoints.networks import find_backbone
from mmvit_backbones.registry import OPTIM_WRAPPER_CONSTRUCTORS

KEYS = {
    'layer_decay_rate',
    'norm_decay_mult',
    'bias_decay_mult',
    'flat_decay_mult',
    'custom_keys',
}
CUSTOM_KEYS = {'lr_mult', 'decay_mult'}


class GroupKey(NamedTuple):
    """What the parameters of one optimizer group share.

    Attributes:
        depth: Depth in the backbone; the last one is everything behind it.
        lr_scale: Factor on the learning rate.
        decay_mult: Factor on the weight decay.
    """

    depth: int
    lr_scale: float
    decay_mult: float


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Optimizer with layer-wise learning-rate decay, for a model with one backbone in it.

    The backbone is the module with a `get_layer_depth(param_name, prefix)`: ours and those of
    mmpretrain have one. What is no part of it (neck, head) has the scale 1. Frozen parameters are
    left out. The groups are printed when they are made.

    Weights in norms, biases, all other one-dimensional parameters (LayerScale), and every
    parameter that the backbone's `no_weight_decay_keywords` name (XCiT's temperature, position and
    class token; Twins-SVT's position encoding generator) have no weight decay, unless
    `paramwise_cfg` says otherwise.

    Args:
        optim_wrapper_cfg: The optimizer wrapper with its `optimizer`, which needs an `lr`.
        paramwise_cfg: A dict of

            - `layer_decay_rate`: factor from a depth to the one before it, in (0, 1]; required.
            - `norm_decay_mult`: factor on the weight decay of norms. Default 0.
            - `bias_decay_mult`: the same for biases outside norms. Default 0.
            - `flat_decay_mult`: the same for other one-dimensional parameters. Default 0.
            - `custom_keys`: from a part of a parameter's name to a dict of `lr_mult` and
              `decay_mult`, both 1 by default, that go before all other rules. The longest part
              wins. `{'temperature': {}}` gives the temperature its decay back.

    Raises:
        ValueError: If a key is unknown or missing, or a value is out of its range.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = set(self.paramwise_cfg) - KEYS
        if unknown:
            raise ValueError(
                f'paramwise_cfg takes {", ".join(sorted(KEYS))}, got {", ".join(sorted(unknown))}'
            )
        if 'layer_decay_rate' not in self.paramwise_cfg:
            raise ValueError('paramwise_cfg must hold layer_decay_rate')
        self.layer_decay_rate = self.paramwise_cfg['layer_decay_rate']
        if not 0 < self.layer_decay_rate <= 1:
            raise ValueError(f'layer_decay_rate must lie in (0, 1], got {self.layer_decay_rate}')
        if self.base_lr is None:
            raise ValueError('optimizer must hold lr, which layer-wise decay scales')
        for key, options in self.paramwise_cfg.get('custom_keys', {}).items():
            if set(options) - CUSTOM_KEYS:
                raise ValueError(
                    f'custom_keys[{key!r}] takes lr_mult and decay_mult, got {sorted(options)}'
                )

    def add_params(self, params: list[dict[str, Any]], module: nn.Module) -> None:
        """Append the optimizer's groups.

        Args:
            params: The list to append to.
            module: The whole model.

        Raises:
            ValueError: If the model does not have exactly one backbone that knows its depths.
        """
        prefix, backbone = find_backbone(
            module, _learns_by_depth, 'trainable backbone with a get_layer_depth'
        )
        keywords = getattr(backbone, 'no_weight_decay_keywords', ())
        custom_keys = {key: {'decay_mult': 0.0} for key in keywords}
        custom_keys |= self.paramwise_cfg.get('custom_keys', {})
        self.custom_keys = dict(sorted(custom_keys.items(), key=lambda item: -len(item[0])))
        groups: dict[GroupKey, dict[str, nn.Parameter]] = {}
        for name, owner, param in named_trainable_parameters(module):
            depth, num_depths = backbone.get_layer_depth(name, prefix)
            lr_mult, decay_mult = self._multipliers(name, owner, param)
            lr_scale = lr_mult * self.layer_decay_rate ** (num_depths - 1 - depth)
            groups.setdefault(GroupKey(depth, lr_scale, decay_mult), {})[name] = param
        print_log(f'Layer-wise decay, {len(groups)} groups of parameters:', logger='current')
        for key, members in sorted(groups.items()):
            group = {
                'params': list(members.values()),
                'lr': self.base_lr * key.lr_scale,
                'lr_scale': key.lr_scale,
                'layer_depth': key.depth,
            }
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * key.decay_mult
            params.append(group)
            print_log(describe_group(key, members), logger='current')

    def _multipliers(self, name: str, owner: nn.Module, param: nn.Parameter) -> tuple[float, float]:
        """Factors on learning rate and weight decay that do not come from the depth."""
        for key, options in self.custom_keys.items():
            if key in name:
                return options.get('lr_mult', 1.0), options.get('decay_mult', 1.0)
        if isinstance(owner, (_NormBase, GroupNorm, LayerNorm)):
            return 1.0, self.paramwise_cfg.get('norm_decay_mult', 0.0)
        if name.endswith('bias'):
            return 1.0, self.paramwise_cfg.get('bias_decay_mult', 0.0)
        if param.ndim == 1:
            return 1.0, self.paramwise_cfg.get('flat_decay_mult', 0.0)
        return 1.0, 1.0


def _learns_by_depth(module: nn.Module) -> bool:
    """Whether a module knows how deep its parameters lie, and some learn."""
    return hasattr(module, 'get_layer_depth') and any(p.requires_grad for p in module.parameters())


def named_trainable_parameters(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Name, module and value of each parameter that learns; a shared one comes once.

    Args:
        model: The whole model.
    """
    seen = set()
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if param.requires_grad and param not in seen:
                seen.add(param)
                yield (f'{prefix}.{name}' if prefix else name), module, param


def describe_group(key: GroupKey, members: dict[str, nn.Parameter]) -> str:
    """One line about a group.

    Args:
        key: What the parameters share.
        members: Parameters by name.
    """
    names = list(members)
    shown = ', '.join(names if len(names) < 4 else [names[0], names[1], '...', names[-1]])
    count = sum(param.numel() for param in members.values())
    return (
        f'  depth {key.depth:2d}, lr x {key.lr_scale:.4g}, weight decay x {key.decay_mult:g}, '
        f'{count:,} values in {len(names)} tensors: {shown}'
    )
