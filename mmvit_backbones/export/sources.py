"""What to export: a model by name, or a toolkit's config, with what a user of the file must know.

A config is Python code that runs here: use only files you trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from mmvit_backbones.backbones.base import Backbone
from mmvit_backbones.checkpoints.description import IMAGENET_MEAN, IMAGENET_STD
from mmvit_backbones.checkpoints.loading import load_checkpoint
from mmvit_backbones.engine.launch import check_toolkit
from mmvit_backbones.export.capture import MIN_SIZE
from mmvit_backbones.models import Classifier, create_model

# PyTorch makes no graph of the toolkits' upsampling that also holds for a single row of tokens.
UPSAMPLING_MIN_SIZE = 33
RESIZING = ('Resize', 'ResizeEdge', 'CenterCrop')


@dataclass(frozen=True)
class Source:
    """A model and what its file alone does not say.

    Attributes:
        model: From normalized images (B, C, H, W) to tensors in tuples and lists.
        names: What each part of the outputs is: a name for a tensor, and for a list of tensors,
            whose names get the index in the list.
        metadata: Content of the description file: task, how to make the input, what is left to do
            with the outputs.
        min_size: Shortest side of an image in pixels.
    """

    model: nn.Module
    names: tuple[str, ...]
    metadata: dict[str, Any]
    min_size: int = MIN_SIZE


class RawOutputs(nn.Module):
    """What the heads of a toolkit's model return, before any decoding.

    Args:
        model: Detector, segmentor or classifier of a toolkit.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        """Run backbone, neck and head on images (B, C, H, W)."""
        return self.model(images, mode='tensor')


def describe(model: Backbone | Classifier) -> Source:
    """Describe a model of `create_model`, or a backbone or classifier built otherwise."""
    config = model.pretrained_cfg
    scaled = {
        k: [255 * v for v in config.get(k, d)]
        for k, d in (('mean', IMAGENET_MEAN), ('std', IMAGENET_STD))
    }
    preprocessing: dict[str, Any] = dict(channel_order='rgb', **scaled)
    if config:
        size = config['input_size'][1]
        preprocessing['resize'] = [
            dict(type='ResizeEdge', scale=round(size / config['crop_pct']), edge='short'),
            dict(type='CenterCrop', crop_size=size),
        ]
    metadata = dict(model=config.get('architecture', type(model).__name__))
    metadata['preprocessing'] = preprocessing
    if isinstance(model, Classifier) and model.num_classes:
        return Source(model, ('logits',), metadata | _classification())
    if isinstance(model, Classifier):
        return Source(model, ('features',), metadata | dict(task='features', left_to_do={}))
    return Source(model, ('feature_map',), metadata | _feature_maps(model))


def source_from_name(
    name: str, num_classes: int | None = None, checkpoint: str | None = None
) -> Source:
    """Build a model of `create_model` for export.

    Args:
        name: One of `list_models()`.
        num_classes: None for a backbone, a number for a classifier.
        checkpoint: What `load_checkpoint` takes: a file, an address or a name of
            `list_pretrained()`. By default the weights are random.
    """
    model = create_model(name, num_classes)
    if checkpoint:
        print(load_checkpoint(model, checkpoint))
    return describe(model)


def source_from_config(
    path: str, checkpoint: str | None = None, backbone_only: bool = False
) -> Source:
    """Build the model of a config of mmdet, mmseg or mmpretrain for export.

    Args:
        path: The config.
        checkpoint: What `load_checkpoint` takes. By default the weights are random.
        backbone_only: Leave out neck and head.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the toolkit is missing, or the model is a detector of two stages, whose
            second stage needs decoded boxes.
    """
    cfg = Config.fromfile(path)
    check_toolkit(cfg.get('default_scope'))
    init_default_scope(cfg.default_scope)
    model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    if checkpoint:
        print(load_checkpoint(model, checkpoint))
    metadata: dict[str, Any] = dict(model=Path(path).stem, preprocessing=_preprocessing(cfg))
    if backbone_only:
        return Source(model.backbone, ('feature_map',), metadata | _feature_maps(model.backbone))
    metadata['classes'] = _class_names(cfg)
    if cfg.default_scope == 'mmpretrain':
        return Source(RawOutputs(model), ('logits',), metadata | _classification())
    if cfg.default_scope == 'mmseg':
        model.auxiliary_head = None  # it serves the loss alone
        metadata |= _segmentation(model)
        return Source(RawOutputs(model), ('logits',), metadata, UPSAMPLING_MIN_SIZE)
    if not hasattr(model, 'bbox_head'):
        raise ValueError(
            f'model must be a detector of one stage, got {type(model).__name__}, whose later '
            f'stages need decoded boxes: export its backbone only'
        )
    names = ('cls_score', 'bbox_pred', 'head_output_2', 'head_output_3')
    metadata |= _detection(model.bbox_head)
    return Source(RawOutputs(model), names, metadata, UPSAMPLING_MIN_SIZE)


def _feature_maps(backbone: nn.Module) -> dict[str, Any]:
    return dict(
        task='feature maps',
        channels=list(backbone.out_channels),  # type: ignore[arg-type]
        strides=list(backbone.out_strides),  # type: ignore[arg-type]
        left_to_do={},
    )


def _classification() -> dict[str, Any]:
    return dict(task='classification', left_to_do=dict(softmax='over the last dimension'))


def _segmentation(model: Any) -> dict[str, Any]:
    resize = dict(to='size of the input', mode='bilinear', align_corners=model.align_corners)
    left_to_do = dict(resize=resize, argmax='over the channels', test_cfg=_plain(model.test_cfg))
    return dict(task='segmentation', left_to_do=left_to_do)


def _detection(head: Any) -> dict[str, Any]:
    left_to_do: dict[str, Any] = dict(test_cfg=_plain(head.test_cfg))
    generator: Any = getattr(head, 'prior_generator', None)
    coder: Any = getattr(head, 'bbox_coder', None)
    if hasattr(generator, 'base_anchors') and hasattr(coder, 'stds'):
        left_to_do['anchors'] = [
            dict(stride=list(stride), boxes=boxes.tolist())
            for stride, boxes in zip(generator.strides, generator.base_anchors, strict=True)
        ]
        left_to_do['box_coder'] = dict(
            type=type(coder).__name__, means=list(coder.means), stds=list(coder.stds)
        )
        left_to_do['scores'] = 'sigmoid' if head.use_sigmoid_cls else 'softmax, background last'
    return dict(task='detection', head=type(head).__name__, left_to_do=left_to_do)


def _preprocessing(cfg: Config) -> dict[str, Any]:
    """Return the constants of the toolkit's data preprocessor and the resizing before it."""
    values = _plain(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})
    to_rgb = values.get('bgr_to_rgb', values.get('to_rgb', False))
    pipeline = cfg.test_dataloader.dataset.pipeline
    return dict(
        channel_order='rgb' if to_rgb else 'bgr',
        mean=values.get('mean', [0.0] * 3),
        std=values.get('std', [1.0] * 3),
        pad_size_divisor=values.get('pad_size_divisor', 1),
        resize=[_plain(step) for step in pipeline if step['type'] in RESIZING],
    )


def _class_names(cfg: Config) -> list[str] | None:
    dataset = cfg.test_dataloader.dataset
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
        data_class = registry.get(dataset.type)
    metainfo = dataset.get('metainfo') or getattr(data_class, 'METAINFO', {})
    classes = metainfo.get('classes') or metainfo.get('CLASSES')
    return None if classes is None else list(classes)


def _plain(value: Any) -> Any:
    """Return settings as what JSON can hold."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
