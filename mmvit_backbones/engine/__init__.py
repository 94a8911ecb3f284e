"""What stands around a model while it trains: the registered hooks and constructors."""

from .finite_loss_hook import FiniteLossHook, NonFiniteError
from .fully_shard_hook import FullyShardHook, shard
from .layer_decay import LayerDecayOptimWrapperConstructor
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'FiniteLossHook',
    'FullyShardHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteError',
    'SafeCheckpointHook',
    'shard',
]
