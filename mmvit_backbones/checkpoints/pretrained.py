"""Start from any public checkpoint by a config."""

from __future__ import annotations

from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import nn

from mmvit_backbones.checkpoints.loading import load_checkpoint
from mmvit_backbones.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module()
class Pretrained:
    """Weight initializer that loads a checkpoint as `load_checkpoint` does.

    For `init_cfg=dict(type='mmvit_backbones.Pretrained', checkpoint=...)` of a backbone or a whole
    model. The report goes to the log.

    Args:
        checkpoint: A name of `list_pretrained()`, a `.pth` or `.safetensors` file, or its address.
        dialect: The source whose names it has; `'auto'` tells it by the keys.
        sha256: Expected SHA-256 of the file, or the first digits of it.
    """

    def __init__(self, checkpoint: str, dialect: str = 'auto', sha256: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.dialect = dialect
        self.sha256 = sha256

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into `module`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is refused, damaged or does not fit.
        """
        # MMEngine would run the children's own initialisation after this one and undo it. Run
        # before, it serves what the checkpoint does not fill, such as a new head.
        for child in module.children():
            if isinstance(child, BaseModule) and not child.is_init:
                child.init_weights()
        report = load_checkpoint(module, self.checkpoint, self.dialect, self.sha256)
        print_log(f'{self.checkpoint}: {report}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'Pretrained: {self.checkpoint}')
