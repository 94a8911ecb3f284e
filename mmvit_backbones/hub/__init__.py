"""Models in folders and on the Hugging Face Hub: `model.safetensors` and `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

Model = TypeVar('Model', bound='OnHub')


class OnHub:
    """The methods of huggingface_hub's mixin, for models that `create_model` built.

    They need the package `huggingface_hub`.

    Attributes:
        creation: Arguments of `create_model`, of which `config.json` is made; empty if it did not
            build the model.
    """

    creation: dict[str, Any]

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write the weights, `config.json` and a model card into a folder.

        Args:
            folder: Where; it is made if it does not exist.
            options: Further ones of `ModelHubMixin.save_pretrained`, such as `push_to_hub=True`.

        Returns:
            The address of the commit if the folder was pushed.

        Raises:
            ValueError: If `create_model` did not build the model, or one of its arguments is
                nothing that JSON can hold.
        """
        from mmvit_backbones.hub.mixin import HubModel

        return HubModel(self).save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes.

        Args:
            repo_id: `<owner>/<name>`.
            options: Further ones of `ModelHubMixin.push_to_hub`, such as `private=True`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: See `save_pretrained`.
        """
        from mmvit_backbones.hub.mixin import HubModel

        return HubModel(self).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls: type[Model], source: str | Path, **options: Any) -> Model:
        """Build a model and load its weights.

        Args:
            source: A folder of `save_pretrained`, or `<owner>/<name>` on the Hub.
            options: Further ones of `ModelHubMixin.from_pretrained`, such as `revision`.

        Raises:
            ValueError: If there is no such model, it is of another class, or the weights do not
                fit.
        """
        from mmvit_backbones.hub.mixin import HubModel

        model = HubModel.from_pretrained(source, **options).model
        if not isinstance(model, cls):
            raise ValueError(
                f'source must hold a {cls.__name__}, {str(source)!r} holds a {type(model).__name__}'
            )
        return model
