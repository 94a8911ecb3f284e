"""The described networks. `register` adds one; nothing else needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mmvit_backbones.checkpoints.description import Network
from mmvit_backbones.checkpoints.errors import some_of
from mmvit_backbones.checkpoints.networks.twins_svt import TWINS_SVT
from mmvit_backbones.checkpoints.networks.xcit import XCIT

NETWORKS: dict[str, Network] = {}


def register(network: Network) -> None:
    """Make a network known to loading, conversion, names and the list of public files.

    Args:
        network: Its description.

    Raises:
        ValueError: If there is a network of that name.
    """
    if network.name in NETWORKS:
        raise ValueError(f'there is a network {network.name!r} already')
    NETWORKS[network.name] = network


register(TWINS_SVT)
register(XCIT)


def is_described(module: nn.Module) -> bool:
    """Whether a module is the backbone of a described network."""
    return isinstance(module, tuple(network.backbone for network in NETWORKS.values()))


def network_of(backbone: nn.Module) -> Network:
    """Return the description of a backbone, of which `is_described` is true."""
    return next(n for n in NETWORKS.values() if isinstance(backbone, n.backbone))


def network_of_model(name: str) -> Network | None:
    """Return the description of the network that has a model of that name."""
    return next((n for n in NETWORKS.values() if name in {**n.models, **n.free_models}), None)


def find_backbone(
    model: nn.Module, accept: Callable[[nn.Module], bool], wanted: str
) -> tuple[str, Any]:
    """Find the one backbone of a model, the innermost module of those that are accepted.

    Args:
        model: The whole model, or the backbone itself.
        accept: Whether a module is a backbone.
        wanted: What is looked for, for the error.

    Returns:
        The prefix of its tensors' names, such as `'backbone.'`, and the module.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = {f'{name}.' if name else '': m for name, m in model.named_modules() if accept(m)}
    innermost = [
        prefix
        for prefix in found
        if not any(other != prefix and other.startswith(prefix) for other in found)
    ]
    if len(innermost) != 1:
        raise ValueError(
            f'model must hold exactly one {wanted}, {type(model).__name__} holds '
            f'{some_of(prefix.removesuffix(".") or "itself" for prefix in innermost)}'
        )
    return innermost[0], found[innermost[0]]
