"""Training and testing: what stands around a model while it runs."""

from .launch import LaunchError, launch_test, launch_train
from .layer_decay import LayerDecayOptimWrapperConstructor
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'LaunchError',
    'LayerDecayOptimWrapperConstructor',
    'SafeCheckpointHook',
    'launch_test',
    'launch_train',
]
