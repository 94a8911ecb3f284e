"""A model to draw: by name, or by a toolkit's config with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints import list_pretrained, load_checkpoint
from mmvit_backbones.checkpoints.description import IMAGENET_MEAN, IMAGENET_STD
from mmvit_backbones.models import create_model, list_models
from mmvit_backbones.visualization.capture import our_backbone

NUM_CLASSES = 1000  # of the public weights


@dataclass(frozen=True)
class Subject:
    """A model and what is known of it.

    Attributes:
        model: The whole model, in evaluation mode.
        mean: Of the input's channels, for pixels in [0, 1].
        std: Of the input's channels, for pixels in [0, 1].
        classes: Names of the classes; None where they are not known.
        cfg: Config that it was built from; None for a model by name.
    """

    model: nn.Module
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    classes: Sequence[str] | None = None
    cfg: Config | None = None

    @property
    def backbone(self) -> Backbone:
        """The backbone of this package in the model."""
        return our_backbone(self.model)


def load_subject(source: str, checkpoint: str | None = None, classifier: bool = False) -> Subject:
    """Build a model and load its weights.

    Args:
        source: A name of `list_models()` or the path of a config.
        checkpoint: What `load_checkpoint` takes: a file, an address, or a name of
            `list_pretrained()`. None leaves the weights random, which shows the structure alone.
        classifier: Build a classifier from a name, else a backbone. XCiT is built without its
            pyramid and Twins-SVT without output norms, because the public weights lack them.

    Raises:
        ValueError: If the name is not known or the weights do not fit.
        FileNotFoundError: If there is no such config or checkpoint.
    """
    if source in list_models():
        return _by_name(source, checkpoint, classifier)
    if not Path(source).is_file():
        raise FileNotFoundError(
            f'model must be a name of list_models() or the path of a config, got {source!r}'
        )
    return _by_config(Config.fromfile(source), checkpoint)


def _by_name(name: str, checkpoint: str | None, classifier: bool) -> Subject:
    if classifier:
        file = list_pretrained().get(checkpoint or '')
        model = create_model(name, num_classes=file.num_classes if file else NUM_CLASSES)
    else:
        model = create_model(name, **_without_untrained_parts(name))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return Subject(model.eval())


def _without_untrained_parts(name: str) -> dict[str, Any]:
    return dict(pyramid=False) if name.startswith('xcit') else dict(out_norm=False)


def _by_config(cfg: Config, checkpoint: str | None) -> Subject:
    from mmvit_backbones.engine.launch import check_toolkit
    from mmvit_backbones.registry import MODELS

    check_toolkit(cfg.get('default_scope'))
    init_default_scope(cfg.default_scope)
    settings = dict(cfg.model)
    preprocessor = settings.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if cfg.default_scope == 'mmpretrain':
        preprocessor = dict(preprocessor, type='ClsDataPreprocessor')
    settings['data_preprocessor'] = preprocessor
    settings.pop('init_cfg', None)
    model = MODELS.build(settings)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return Subject(
        model.eval(),
        mean=[value / 255 for value in preprocessor.get('mean', [0.0] * 3)],
        std=[value / 255 for value in preprocessor.get('std', [255.0] * 3)],
        classes=_classes(cfg),
        cfg=cfg,
    )


def _classes(cfg: Config) -> Sequence[str] | None:
    """Return the names of the classes that a config gives."""
    dataset = cfg.get('test_dataloader', cfg.get('val_dataloader', {})).get('dataset', {})
    classes = dataset.get('metainfo', {}).get('classes') or cfg.get('classes')
    return list(classes) if classes else None
