"""Files that run without this package: ONNX, `torch.export`, AOTInductor, OpenVINO."""

from mmvit_backbones.export.capture import ATTENTIONS, capture
from mmvit_backbones.export.files import (
    Check,
    export_model,
    exported_bytes,
    format_checks,
    load_exported,
    verify,
)
from mmvit_backbones.export.formats import FORMATS
from mmvit_backbones.export.sources import Source, source_from_config, source_from_name

__all__ = [
    'ATTENTIONS',
    'FORMATS',
    'Check',
    'Source',
    'capture',
    'export_model',
    'exported_bytes',
    'format_checks',
    'load_exported',
    'source_from_config',
    'source_from_name',
    'verify',
]
