"""Stop a run whose loss is no number any more, before its weights are none either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmvit_backbones.registry import HOOKS


class NonFiniteError(RuntimeError):
    """A loss or weights with NaN or infinity in them."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Check the loss at every iteration, after the backward pass and before the optimizer's step.

    So the weights stay those of the iteration before. The price is to wait for the loss at a place
    where MMEngine, which logs it at every iteration, waits a moment later anyway.

    Raises:
        NonFiniteError: During training, if a loss is NaN or infinite. It names the iteration, the
            images and the largest gradient.
    """

    def __init__(self) -> None:
        self.data_batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Put the check into the optimizer wrapper."""
        wrapper = runner.optim_wrapper
        for part in wrapper.values() if hasattr(wrapper, 'values') else [wrapper]:
            part.backward = self._checked(part.backward, runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the images."""
        self.data_batch = data_batch

    def _checked(self, backward: Callable[..., Any], runner: Runner) -> Callable[..., Any]:
        def checked_backward(loss: Tensor, **kwargs: Any) -> None:
            backward(loss, **kwargs)
            if not bool(torch.isfinite(loss.detach()).all()):
                raise NonFiniteError(
                    f'the loss is {float(loss.detach())} at iteration {runner.iter + 1} (epoch '
                    f'{runner.epoch + 1}); images: {_image_names(self.data_batch)}; '
                    f'{_largest_gradient(runner.model)}; checkpoints stay as they were'
                )

        return checked_backward


def check_weights(model: nn.Module) -> None:
    """Raise NonFiniteError if a parameter is NaN or infinite somewhere."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f'{name} is not finite: no checkpoint is written, earlier ones stay'
            )


def _image_names(data_batch: Any) -> str:
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    names = [getattr(sample, 'img_path', None) for sample in samples or ()]
    return ', '.join(str(name) for name in names if name) or 'of unknown names'


def _largest_gradient(model: nn.Module) -> str:
    """The parameter with the largest gradient; NaN counts as largest.

    Of sharded gradients this process reads its own part: the other processes, whose loss may be
    finite, would not take part in gathering them.
    """
    gradients = {
        name: value.grad.to_local() if hasattr(value.grad, 'to_local') else value.grad
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    largest = {
        name: float(torch.nan_to_num(grad.abs(), nan=torch.inf, posinf=torch.inf).max())
        for name, grad in gradients.items()
        if grad.numel()
    }
    if not largest:
        return 'no gradient'
    infinite = [name for name, value in largest.items() if value == torch.inf]
    if infinite:
        finite = {name: value for name, value in largest.items() if value != torch.inf}
        rest = f', the largest other is {_name_largest(finite)}' if finite else ''
        return f'{len(infinite)} of {len(largest)} gradients are not finite{rest}'
    return f'the largest gradient is {_name_largest(largest)}'


def _name_largest(gradients: dict[str, float]) -> str:
    name = max(gradients, key=lambda key: gradients[key])
    return f'{gradients[name]:.3g} of {name}'
