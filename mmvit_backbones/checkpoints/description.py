"""The form of a network's description: all that generic code knows of the network.

Keys of weights are written with `#` for a number. Our names are those of a classifier:
`backbone.`, `neck.`, `head.fc.`; fields about the backbone alone leave `backbone.` out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints.download import Address
from mmvit_backbones.checkpoints.rules import Rule, StateDict, Step, find, rename
from mmvit_backbones.layers.variant import PAPER

PREFIX = 'backbone.'
HEAD = 'head.fc.'
OURS = 'ours'
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIALECTS = ('official', 'timm', 'mmpretrain', 'mmseg', 'vit-pytorch', OURS)


@dataclass(frozen=True)
class Dialect:
    """How one source names the weights of a network.

    Attributes:
        name: The source, one of `DIALECTS`.
        rules: Table of names, or a function of the weights and of the direction (to ours or not)
            that makes it; None for our own names.
        required: Keys that are all in such weights; none if nothing tells them from another source.
        forbidden: Keys of which none is.
        head_prefixes: Prefixes of this source's classifier keys outside the backbone.
        steps: Changes of tensors after renaming to our names.
        variant: The only variant that the source has; None for any.
    """

    name: str
    rules: tuple[Rule, ...] | Callable[[Mapping[str, Tensor], bool], Iterable[Rule]] | None
    required: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    head_prefixes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    variant: str | None = PAPER

    def matches(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights, without `backbone.` of a whole model, come from this source."""
        return (
            bool(self.required)
            and all(find(weights, key) for key in self.required)
            and not any(find(weights, key) for key in self.forbidden)
        )

    def read(self, theirs: StateDict) -> StateDict:
        """Give weights our names.

        Raises:
            CheckpointError: If a key has no rule.
        """
        if self.rules is None:
            return {
                k if k.startswith(self.head_prefixes) else PREFIX + k: v for k, v in theirs.items()
            }
        rules = self.rules(theirs, True) if callable(self.rules) else self.rules
        ours = rename(theirs, rules, to_ours=True)
        for step in self.steps:
            ours = step.to_ours(ours)
        return ours

    def write(self, ours: StateDict) -> StateDict:
        """Give weights this source's names.

        Raises:
            CheckpointError: If a key has no rule.
        """
        if self.rules is None:
            return {key.removeprefix(PREFIX): value for key, value in ours.items()}
        for step in reversed(self.steps):
            ours = step.to_theirs(ours)
        rules = self.rules(ours, False) if callable(self.rules) else self.rules
        return rename(ours, rules, to_ours=False)


@dataclass(frozen=True)
class OptionalPart:
    """Tensors that either the weights or the model may lack.

    Attributes:
        key: Start of their names; or their end, if it starts with a dot.
        missing: Why the weights may lack them; None if they may not.
        unexpected: Why the model may lack them; None if it may not.
    """

    key: str
    missing: str | None = None
    unexpected: str | None = None

    def covers(self, name: str) -> bool:
        """Whether a tensor belongs to the part."""
        return name.endswith(self.key) if self.key.startswith('.') else name.startswith(self.key)


@dataclass(frozen=True)
class PublicFile:
    """Weights that anyone can download.

    Attributes:
        name: `<model>.<tag>`, or `<method>_<model>.<tag>` for a whole detector or segmentor.
        model: Name of the model, or of the backbone of a detector or segmentor.
        addresses: Where the file is, mirrors in the order in which they are tried.
        input_size: Side in pixels of the images of the reported accuracy.
        metric: What the accuracy is.
        accuracy: As reported by `source`, in percent. None was measured by us.
        source: Who reports it.
        num_classes: Classes of the head; 0 if the file has none.
        licence: Of the weights.
        mean: What is subtracted from pixels in [0, 1].
        std: By what they are then divided.
    """

    name: str
    model: str
    addresses: tuple[Address, ...]
    input_size: int
    metric: str
    accuracy: tuple[float, ...]
    source: str
    num_classes: int = 1000
    licence: str = 'Apache-2.0'
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def tag(self) -> str:
        """What tells the file from others of the model."""
        return self.name.partition('.')[2]

    @property
    def reported(self) -> str:
        """Metric and accuracy in words."""
        return f'{self.metric} {" / ".join(map(str, self.accuracy))}'

    def __str__(self) -> str:
        return f'{self.name}: {self.input_size} px, {self.reported} ({self.source})'


def at(*urls: str) -> tuple[Address, ...]:
    """Return addresses with the hash that OpenMMLab puts at the end of a file's name."""
    hashes = [re.search(r'-([0-9a-f]{8})\.pth$', url) for url in urls]
    return tuple(
        Address(url, hit[1] if hit else None) for url, hit in zip(urls, hashes, strict=True)
    )


Adapter = Callable[[Tensor, Tensor], tuple[Tensor, str] | None]


@dataclass(frozen=True)
class Network:
    """Description of one network.

    Attributes:
        name: Start of its models' names.
        backbone: The class.
        archs: Named architectures, all of one dataclass with a field `variant`.
        models: Model's name -> arguments of the backbone.
        free_models: Model's name -> function from a user's sizes to arguments of the backbone.
        dialects: Sources of weights.
        arch_settings: Fields of the architecture that weights show.
        options: Other arguments of the backbone that weights show -> function from an argument to
            what they show of it.
        read_settings: Values of both as weights under our names show them, None where they don't.
        last_map: From an architecture to the arguments that make a backbone return its last
            feature map only.
        pooling: From a backbone to the pooling neck that belongs to it.
        stacks: Numbered modules in the order of the depth. A model may end early.
        optional_parts: What weights or models may lack.
        adapters: Key -> function from a source's and the model's tensor, of different shapes, to
            the adapted tensor and what was done; None if there is no way.
        crop: Share of the image that tests of classifiers cut out.
        files: Public weights. The first of a model is its default.
    """

    name: str
    backbone: type[Backbone]
    archs: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    dialects: tuple[Dialect, ...]
    arch_settings: tuple[str, ...]
    read_settings: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    last_map: Callable[[Any], dict[str, Any]]
    pooling: Callable[[Any], nn.Module]
    options: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    free_models: Mapping[str, Callable[..., dict[str, Any]]] = field(default_factory=dict)
    stacks: tuple[str, ...] = ()
    optional_parts: tuple[OptionalPart, ...] = ()
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    crop: float = 1.0
    files: tuple[PublicFile, ...] = ()

    def dialect(self, name: str) -> Dialect:
        """Return a source's names of this network.

        Raises:
            ValueError: If the source is not known or does not have the network.
        """
        if name not in DIALECTS:
            raise ValueError(f'dialect must be one of {DIALECTS}, got {name!r}')
        for dialect in self.dialects:
            if dialect.name == name:
                return dialect
        raise ValueError(f'dialect {name!r} does not have {self.name}')

    def signature(self, arch: Any, **options: Any) -> Signature:
        """Return what weights of an architecture show."""
        known = {name: getattr(arch, name) for name in self.arch_settings}
        shown = {name: show(options.get(name)) for name, show in self.options.items()}
        return Signature(self.name, {**known, **shown})

    def signature_of_model(self, backbone: Backbone) -> Signature:
        """Return what weights of a backbone's whole architecture show."""
        options = {name: getattr(backbone, name) for name in self.options}
        return self.signature(backbone.arch, **options)

    def signature_of_weights(self, weights: Mapping[str, Tensor]) -> Signature:
        """Return what weights under our names show."""
        return Signature(self.name, self.read_settings(weights))


@dataclass(frozen=True)
class Signature:
    """What is known of weights or of a model: the network and its settings.

    Attributes:
        network: Name of the network.
        settings: Setting -> value, None if it is not known.
    """

    network: str
    settings: Mapping[str, Any]

    def matches(self, other: Signature) -> bool:
        """Whether both can be the same."""
        return self.network == other.network and all(
            None in (value, other.settings[name]) or value == other.settings[name]
            for name, value in self.settings.items()
        )

    def __str__(self) -> str:
        return f'a {self.network} with ' + ', '.join(
            f'{name} {value}' for name, value in self.settings.items()
        )
