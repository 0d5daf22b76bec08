"""Weights of nnU-Net's network in our `unet`, so that both can be asked the same: does the rest of the way agree?

nnU-Net keeps its weights in PyTorch. Where PyTorch is installed they become plain arrays by

    network.load_state_dict(torch.load("checkpoint_final.pth", weights_only=False)["network_weights"])
    numpy.savez("weights.npz", **{name: value.numpy() for name, value in network.state_dict().items()})

and here, without PyTorch, `copy_weights(numpy.load("weights.npz"), model)` puts them into a `unet` of the same plan
(plain blocks, instance norm, `deep_supervision=True`, `strides` and `kernels` of the plan).

PyTorch orders kernels (out, in, *edges), of transposed convolutions (in, out, *edges); Keras (*edges, in, out) and
(*edges, out, in). nnU-Net counts the stages of its decoder from the deepest up, we count levels from the finest down.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

ENCODER = re.compile(r"encoder\.stages\.(\d+)\.(?:\d+\.)?convs\.(\d+)\.(conv|norm)\.(weight|bias)")
DECODER = re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(weight|bias)")
BETWEEN = re.compile(r"decoder\.(transpconvs|seg_layers)\.(\d+)\.(weight|bias)")
WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")
"""What torch.compile and multi-GPU training put before every name."""


def copy_weights(weights: Mapping[str, np.ndarray], model: Any) -> int:
    """Copies the weights of a `PlainConvUNet` into a `unet` and returns how many numbers that were.

    Args:
        weights: arrays by their name in PyTorch's state dict.
        model: `unet` built for the same plan; changed in place.

    Raises:
        ValueError: a layer is missing on either side, or a shape differs.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    num_levels = 1 + max(int(layer.name[7:].split("_")[0]) for layer in model.layers if layer.name[:7] == "encoder")
    for name in weights:
        if target := layer_of(WRAPPERS.sub("", name), num_levels):
            layer, part = target
            found.setdefault(layer, {})[part] = np.asarray(weights[name])
    ours = {layer.name: layer for layer in model.layers if layer.weights}
    if ours.keys() != found.keys():
        raise ValueError(
            f"layers only here: {sorted(ours.keys() - found.keys())}, only in the weights:"
            f" {sorted(found.keys() - ours.keys())}; build the unet of the same plan, with deep_supervision"
        )
    for name, layer in ours.items():
        arrays = [_turned(found[name][part]) for part in ("weight", "bias") if part in found[name]]
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if [array.shape for array in arrays] != shapes:
            raise ValueError(f"{name} has {shapes}, the weights {[array.shape for array in arrays]}; check the plan")
        layer.set_weights(arrays)
    return sum(array.size for parts in found.values() for array in parts.values())


def layer_of(name: str, num_levels: int) -> tuple[str, str] | None:
    """Returns our layer and the part ("weight" or "bias") of a name of PyTorch's; None for the second names of one.

    >>> layer_of("encoder.stages.2.0.convs.1.norm.bias", 6)
    ('encoder2_norm1', 'bias')
    >>> layer_of("decoder.transpconvs.0.weight", 6), layer_of("decoder.seg_layers.4.bias", 6)
    (('decoder4_up', 'weight'), ('probabilities_logits', 'bias'))
    >>> layer_of("encoder.stages.2.0.convs.1.all_modules.1.bias", 6)
    """
    if match := ENCODER.fullmatch(name):
        level, number, kind, part = match.groups()
        return f"encoder{level}_{kind}{number}", part
    if match := DECODER.fullmatch(name):
        stage, number, kind, part = match.groups()
        return f"decoder{num_levels - 2 - int(stage)}_{kind}{number}", part
    if match := BETWEEN.fullmatch(name):
        kind, stage, part = match.groups()
        level = num_levels - 2 - int(stage)
        if kind == "transpconvs":
            return f"decoder{level}_up", part
        return f"probabilities{f'_{level}' if level else ''}_logits", part
    return None


def _turned(weight: np.ndarray) -> np.ndarray:
    """Brings the first two axes to the end, the first one last; biases and norms have one axis and stay."""
    return weight if weight.ndim == 1 else np.moveaxis(weight, (1, 0), (-2, -1))
