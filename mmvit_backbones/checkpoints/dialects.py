"""Which source weights come from, and the way from any source to any other through our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mmvit_backbones.checkpoints import twins, xcit
from mmvit_backbones.checkpoints.archs import TWINS_SVT, VIT_PYTORCH, XCIT
from mmvit_backbones.checkpoints.errors import CheckpointError, some_of
from mmvit_backbones.checkpoints.rules import StateDict

PREFIX = 'backbone.'


@dataclass(frozen=True)
class Dialect:
    """How one source names the weights of one network.

    Attributes:
        name: The source.
        network: `'twins_svt'` or `'xcit'`.
        read: From its names to ours.
        write: From our names to its.
        marks: Keys that all are in such weights, `#` for a number; none if nothing tells them from
            another source's.
        excluded: Keys of which none is.
        outside: Prefixes of what stands beside the backbone in a classifier.
    """

    name: str
    network: str
    read: Callable[[StateDict], StateDict]
    write: Callable[[StateDict], StateDict]
    marks: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether weights, without the prefix of a whole model, have the marks."""
        keys = list(keys)
        has_marks = bool(self.marks) and all(_occurs(mark, keys) for mark in self.marks)
        return has_marks and not any(_occurs(mark, keys) for mark in self.excluded)


def _occurs(mark: str, keys: Iterable[str]) -> bool:
    regex = re.compile(re.escape(mark).replace(r'\#', r'\d+'))
    return any(regex.fullmatch(key) for key in keys)


_TWINS_BLOCK = 'blocks.#.#.norm1.weight'
_OUR_CLASSIFIER = (
    'neck.norm.',
    'neck.patch_norm.',
    'neck.cls_token',
    'neck.cls_attn_blocks.',
    'head.fc.',
)

# timm names Twins-SVT as the authors do, and we a dense backbone as both: such weights are called
# official where they have a final norm and ours where they don't, which makes no difference.
DIALECTS = (
    Dialect(
        'official',
        TWINS_SVT,
        twins.read_official,
        twins.write_official,
        marks=(_TWINS_BLOCK, 'norm.weight'),
    ),
    Dialect('timm', TWINS_SVT, twins.read_official, twins.write_timm),
    Dialect(
        'mmpretrain',
        TWINS_SVT,
        twins.read_mmpretrain,
        twins.write_mmpretrain,
        marks=('stages.#.#.norm1.weight', 'position_encodings.#.proj.weight'),
        outside=('head.fc.',),
    ),
    Dialect(
        'mmseg',
        TWINS_SVT,
        twins.read_mmseg,
        twins.write_mmseg,
        marks=('layers.#.#.norm1.weight', 'position_encodings.#.proj.weight'),
    ),
    Dialect(
        VIT_PYTORCH,
        TWINS_SVT,
        twins.read_vit_pytorch,
        twins.write_vit_pytorch,
        marks=('layers.#.0.proj.0.g', 'layers.#.2.proj.fn.weight'),
    ),
    Dialect(
        'ours',
        TWINS_SVT,
        twins.read_ours,
        twins.write_ours,
        marks=(_TWINS_BLOCK,),
        excluded=('norm.weight',),
        outside=_OUR_CLASSIFIER,
    ),
    Dialect(
        'official',
        XCIT,
        xcit.read_official,
        xcit.write_official,
        marks=('blocks.#.attn.temperature', 'pos_embeder.token_projection.weight'),
    ),
    Dialect(
        'timm',
        XCIT,
        xcit.read_timm,
        xcit.write_timm,
        marks=('blocks.#.attn.temperature', 'cls_attn_blocks.#.attn.q.weight'),
    ),
    Dialect(
        'mmpretrain',
        XCIT,
        xcit.read_mmpretrain,
        xcit.write_mmpretrain,
        marks=('xca_layers.#.attn.temperature',),
        outside=('head.fc.',),
    ),
    Dialect(
        VIT_PYTORCH,
        XCIT,
        xcit.read_vit_pytorch,
        xcit.write_vit_pytorch,
        marks=('xcit_transformer.layers.#.0.fn.temperature',),
    ),
    Dialect(
        'ours',
        XCIT,
        xcit.read_ours,
        xcit.write_ours,
        marks=('blocks.#.attn.temperature',),
        excluded=('pos_embeder.token_projection.weight', 'cls_attn_blocks.#.attn.q.weight'),
        outside=_OUR_CLASSIFIER,
    ),
)
NAMES = ('official', 'timm', 'mmpretrain', 'mmseg', VIT_PYTORCH, 'ours')


@dataclass(frozen=True)
class Weights:
    """Weights of a backbone, a classifier or a whole model under our names.

    Attributes:
        dialect: Where they come from.
        ours: Names of a classifier: `backbone.`, `neck.`, `head.fc.`.
        others: What else a whole model holds, under its names.
        is_whole: Whether they come from a detector or segmentor.
        unused: Our names of what was there but takes no part: the authors' dense copies keep an
            ImageNet head.
    """

    dialect: Dialect
    ours: StateDict
    others: StateDict
    is_whole: bool
    unused: tuple[str, ...] = ()


def find_dialect(name: str, network: str) -> Dialect:
    """Return a source's names of a network.

    Raises:
        ValueError: If the source is not known or does not have the network.
    """
    if name not in NAMES:
        raise ValueError(f'dialect must be one of {NAMES}, got {name!r}')
    for dialect in DIALECTS:
        if (dialect.name, dialect.network) == (name, network):
            return dialect
    raise ValueError(f'dialect {name!r} does not have {network}')


def read_weights(state_dict: Mapping[str, Tensor], dialect: Dialect | None = None) -> Weights:
    """Bring weights of any source under our names.

    Args:
        state_dict: Unwrapped weights of a backbone, a classifier, a detector or a segmentor.
        dialect: Their source; None to tell it by the keys.

    Raises:
        CheckpointError: If no source or several match, or a key is not known.
    """
    inside = {k.removeprefix(PREFIX): v for k, v in state_dict.items() if k.startswith(PREFIX)}
    outside = {k: v for k, v in state_dict.items() if not k.startswith(PREFIX)}
    if not inside:
        inside, outside = outside, {}
    has_prefix = any(key.startswith(PREFIX) for key in state_dict)
    dialect = dialect or _detect(inside)
    beside = {k: v for k, v in outside.items() if k.startswith(dialect.outside)}
    if dialect.outside and outside and len(beside) == len(outside):
        return Weights(dialect, dialect.read({**inside, **beside}), {}, is_whole=False)
    ours = dialect.read(inside)
    if not has_prefix:
        return Weights(dialect, ours, {}, is_whole=False)
    backbone = {key: value for key, value in ours.items() if key.startswith(PREFIX)}
    unused = tuple(key for key in ours if key not in backbone)
    return Weights(dialect, backbone, outside, is_whole=True, unused=unused)


def _detect(state_dict: Mapping[str, Tensor]) -> Dialect:
    hits = [dialect for dialect in DIALECTS if dialect.matches(state_dict)]
    if len(hits) == 1:
        return hits[0]
    problem = 'matches no source' if not hits else 'matches several sources'
    looked_for = '; '.join(
        f'{dialect.name} {dialect.network}: {", ".join(dialect.marks)}'
        for dialect in hits or DIALECTS
        if dialect.marks
    )
    raise CheckpointError(
        f'the state dict {problem}; its keys are {some_of(state_dict)}; looked for {looked_for}'
    )


def write_weights(weights: Weights, dialect: Dialect) -> StateDict:
    """Bring weights under a source's names.

    Raises:
        CheckpointError: If the source does not have their structure.
    """
    is_vit_pytorch = any('.pre_norm.' in key for key in weights.ours)
    if dialect.name != 'ours' and is_vit_pytorch != (dialect.name == VIT_PYTORCH):
        structure = VIT_PYTORCH if is_vit_pytorch else 'paper'
        raise CheckpointError(
            f'weights in the {structure} layout cannot be converted to {dialect.name!r}, which has '
            'another structure'
        )
    theirs = dialect.write(weights.ours)
    if weights.is_whole:
        return {**{PREFIX + key: value for key, value in theirs.items()}, **weights.others}
    if any(key.startswith(dialect.outside) for key in theirs):
        return {
            key if key.startswith(dialect.outside) else PREFIX + key: value
            for key, value in theirs.items()
        }
    return theirs
