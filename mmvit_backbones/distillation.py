"""Hard knowledge distillation, as XCiT and DeiT are trained with it.

Papers: XCiT, https://arxiv.org/abs/2106.09681, Table 1; DeiT, https://arxiv.org/abs/2012.12877,
section 4. Works with the classifiers of mmpretrain and needs to import none of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmvit_backbones.checkpoints.reading import read_checkpoint
from mmvit_backbones.registry import MODELS


class Teacher:
    """A frozen classifier that is no part of the model that learns from it.

    Copies of the student (an average over training, say) share it, and `state_dict()`,
    `parameters()` and `train()` of the student do not reach it.

    Args:
        model: A classifier of mmpretrain: `forward(inputs, mode='tensor')` gives logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    @torch.no_grad()
    def label(self, inputs: Tensor) -> Tensor:
        """The class (B,) that the teacher sees in each of the images (B, C, H, W)."""
        return self.model.to(inputs)(inputs, mode='tensor').argmax(dim=1)


@MODELS.register_module()
class HardDistillationClassifier(BaseModel):
    """A classifier of mmpretrain that also learns the classes which a teacher names.

    The loss is `(1 - alpha)` times the student's own, plus `alpha` times the cross entropy with
    the teacher's most likely class as the label. The teacher sees the same augmented and mixed
    images as the student, so it must expect the same normalisation.

    The student's parts (`backbone`, `neck`, `head`) are this model's parts under the same names,
    and the teacher is none: a checkpoint is one of the plain student. The teacher's weights are
    read by `init_weights()`, so at each start of a run, a resumed one too.

    Args:
        student: Config of the `ImageClassifier` to train.
        teacher: Config of any classifier of mmpretrain with the same classes.
        teacher_checkpoint: The teacher's weights, a file or URL; None if its config loads them
            itself. Every weight must be there.
        alpha: Weight of the teacher, in [0, 1].
        data_preprocessor: The student's, where its config has none.

    Raises:
        ValueError: If `alpha` is out of range.
    """

    def __init__(
        self,
        student: dict[str, Any],
        teacher: dict[str, Any],
        teacher_checkpoint: str | None = None,
        alpha: float = 0.5,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha must lie in [0, 1], got {alpha}')
        if data_preprocessor is not None:
            student = {'data_preprocessor': data_preprocessor, **student}
        built = MODELS.build(student)
        super().__init__(data_preprocessor=built.data_preprocessor)
        self.alpha = alpha
        for name, part in built.named_children():
            self.add_module(name, part)
        # In a tuple, so that torch does not take it for a part with names of its own.
        self._student = (built,)
        self._teacher = Teacher(MODELS.build(teacher))
        self.teacher_checkpoint = teacher_checkpoint

    @property
    def student(self) -> Any:
        """The plain classifier, made of the same parts."""
        return self._student[0]

    def init_weights(self) -> None:
        """Initialise the student as its config says, and load the teacher's weights.

        Raises:
            FileNotFoundError: If the teacher's file is not there.
            ValueError: If it is refused or damaged.
            RuntimeError: If its weights are not exactly the teacher's.
        """
        self.student.init_weights()
        self._teacher.model.init_weights()
        if self.teacher_checkpoint is not None:
            weights = read_checkpoint(self.teacher_checkpoint)
            self._teacher.model.load_state_dict(weights, strict=True)

    def forward(
        self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'tensor'
    ) -> Any:
        """As the student's, except for the losses.

        Args:
            inputs: Normalised images (B, C, H, W).
            data_samples: Their labels; required for the losses.
            mode: 'loss' for a dict of losses, 'predict' for data samples, 'tensor' for logits.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode)
        features = self.student.extract_feat(inputs)
        losses = self.student.head.loss(features, data_samples)
        for name in losses:
            if 'loss' in name:
                losses[name] = (1 - self.alpha) * losses[name]
        logits = self.student.head(features)
        losses['loss_teacher'] = self.alpha * F.cross_entropy(logits, self._teacher.label(inputs))
        return losses
