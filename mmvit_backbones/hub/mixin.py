"""What huggingface_hub asks of a library: how to write its models and how to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mmvit_backbones.checkpoints.loading import load_checkpoint
from mmvit_backbones.models import Classifier, create_model

try:
    from huggingface_hub import ModelHubMixin, hf_hub_download
except ImportError:
    raise ModuleNotFoundError(
        'huggingface_hub is needed for this, not installed: pip install huggingface_hub'
    ) from None

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'


class HubModel(ModelHubMixin, library_name='mmvit_backbones', tags=['image-feature-extraction']):
    """A model with the mixin's methods.

    Args:
        model: A backbone or classifier that `create_model` built.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        creation = dict(self.model.creation)
        if not creation:
            raise ValueError(
                'the model must be one of create_model, which knows how to build it again'
            )
        if isinstance(self.model, Classifier):  # reset_classifier may have changed it
            creation['num_classes'] = self.model.num_classes
        try:
            text = json.dumps(creation, indent=2)
        except TypeError as error:
            raise ValueError(f'an argument of create_model cannot be saved: {error}') from None
        weights = {name: t.contiguous() for name, t in self.model.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, metadata={'format': 'pt'})
        (save_directory / CONFIG).write_text(text + '\n')

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | None = None, **options: Any
    ) -> HubModel:
        if not isinstance(config, dict) or 'name' not in config:
            raise ValueError(f'{model_id!r} must have a {CONFIG} with the name of a model')
        model = create_model(config['name'], config.get('num_classes'), **config.get('options', {}))
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = Path(hf_hub_download(repo_id=model_id, filename=WEIGHTS, **options))
        load_checkpoint(model, str(path), dialect='ours')
        return cls(model)
