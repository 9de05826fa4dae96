"""Backbones of the network: pretrained weights from transformers' checkpoints, and norms that suit small batches."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewlabel.core.errors import ModelError, first_line
from fewlabel.sam.families import quiet

STAGES = ("stage1", "stage2", "stage3", "stage4")  # feature maps at strides 4, 8, 16 and 32
OWN = "hidden_states_norms."  # norms that a backbone of Swin adds to what a checkpoint of a classifier holds


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine map never change.

    All four are buffers: no optimiser moves them, training mode has no effect on them, and files of learnt weights hold
    them, because they hold buffers.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Freeze a norm.

        Args:
            norm: an affine norm over C channels with running statistics.
        """
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)` by the stored statistics."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def group_norm(channels: int) -> nn.GroupNorm:
    """A norm of one image at a time: 32 groups, fewer where a group would have less than four channels."""
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels)


def replace_norms(backbone: nn.Module, kind: str) -> None:
    """Exchange the batch norms of a backbone in place.

    Args:
        backbone: any module; without batch norms (Swin has layer norms) nothing changes.
        kind: `frozen` keeps what they hold for good, `group` puts fresh group norms, `batch` leaves them.
    """
    if kind == "batch":
        return
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm(child) if kind == "frozen" else group_norm(child.num_features))


def load_backbone(backbone: nn.Module, source: str) -> None:
    """Fill a backbone with pretrained weights, in place.

    Args:
        backbone: transformers' backbone with feature maps of `STAGES`, its norms as the library made them.
        source: a folder or hub id of a checkpoint of the same architecture, a bare model's or a classifier's; only
            safetensors are read.

    Raises:
        ModelError: There is no such checkpoint, or its tensors are not those of the backbone.
    """
    state = _pretrained(backbone, source)
    expected = {name: value.shape for name, value in backbone.state_dict().items()}
    wrong = [name for name, shape in expected.items() if name not in state or state[name].shape != shape]
    wrong += [name for name in state if name not in expected]
    if wrong:
        raise ModelError(
            f"The backbone weights {source} are of another architecture: {len(wrong)} tensors are missing, unknown or"
            f" of another shape, such as {wrong[0]}; give a checkpoint of the network's own backbone."
        )
    backbone.load_state_dict(state)


def _pretrained(backbone: Any, source: str) -> dict[str, Tensor]:
    """The tensors of the backbone that a checkpoint's own configuration describes, if it is of the same kind."""
    folder = Path(source).is_dir()
    if not folder and (Path(source).exists() or source.count("/") != 1):  # hub ids are owner/name
        raise ModelError(
            f"The backbone weights {source} are neither a folder with config.json and model.safetensors nor a hub id;"
            " give one of them, or none to train from scratch."
        )
    with quiet():
        try:
            kind, wanted = _description(source, folder).get("model_type"), backbone.config.model_type
            if kind != wanted:
                raise ModelError(
                    f"The backbone weights {source} are of a model of type {kind!r}, expected {wanted!r}; give a"
                    " checkpoint of the network's own backbone."
                )
            # The class itself: the library's AutoBackbone asks the hub even about a folder.
            loaded, report = type(backbone).from_pretrained(
                source,
                out_features=list(STAGES),
                dtype=torch.float32,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers, its configurations and safetensors have classes of their own
            raise ModelError(
                f"The backbone weights {source} cannot be loaded ({first_line(error)}); give a folder with config.json"
                " and model.safetensors, a hub id while online, or none to train from scratch."
            ) from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(OWN)):
        raise ModelError(
            f"The backbone weights {source} lack {len(missing)} tensors that their config.json asks for, such as"
            f" {missing[0]}; download the checkpoint again."
        )
    state: dict[str, Tensor] = loaded.state_dict()
    return state


def _description(source: str, folder: bool) -> dict[str, Any]:
    """What `config.json` says; a hub id that is not in the hub's cache on this machine is looked up.

    Without network the look-up fails at once, where fetching would retry for long.
    """
    from huggingface_hub import HfApi
    from transformers import PreTrainedConfig

    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(source, local_files_only=True)[0]
    except OSError:
        if folder:
            raise
        HfApi().model_info(source, timeout=10)
        config = PreTrainedConfig.get_config_dict(source)[0]
    if "model_type" not in config:
        raise OSError("it has no config.json that names a model_type")
    return config
