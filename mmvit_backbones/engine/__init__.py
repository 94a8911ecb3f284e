"""Training and testing: what stands around a model while it runs."""

from .finite_loss_hook import FiniteLossHook, NonFiniteError
from .launch import LaunchError, launch_test, launch_train, run_tool
from .layer_decay import LayerDecayOptimWrapperConstructor
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'FiniteLossHook',
    'LaunchError',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteError',
    'SafeCheckpointHook',
    'launch_test',
    'launch_train',
    'run_tool',
]
