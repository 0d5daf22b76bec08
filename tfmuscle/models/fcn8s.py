"""FCN-8s in 3D or 2D, by the rank of the input: the fully convolutional network that the cascade is compared with.

Five levels of two convolutions, each followed by max-pooling, so that the deepest map is a 32nd of the image; 1x1 score
heads on the third, the fourth and the deepest pooled map; the deepest score is enlarged twice and added to the fourth,
their sum twice and added to the third, and that eight times. Kernels of the enlarging transposed convolutions have
2 * factor voxels and start as linear interpolation, class by class; they have no bias and are trained. As in the U-Net
of Ni et al. 2019 the filters start at `filters` and double per level, where Long et al. took VGG-16; so the two differ
in the decoder, which is what is compared. Rejected: Long's two wide layers below the deepest map, which would be most
of the weights; the zero start of his score heads, which needs a trained encoder; cropping of maps, for sizes are
multiples of 32.
"""

import keras
import numpy as np
from keras import layers

from tfmuscle.models.blocks import convolution, max_pool, plain_block, softmax
from tfmuscle.models.segnet import LEVELS, check_levels

FACTS = {
    "source": "Long et al. 2015 (FCN-8s), with the encoder of Ni et al. 2019",
    "input_shape": (64, 64, 64, 1),
    "num_classes": 2,
    "options": {},
    "spatial_axes": (2, 3),
    "multiple_of": 32,
    "depth_multiple_of": 32,
}


def fcn8s(
    input_shape: tuple[int | None, ...],
    num_classes: int,
    *,
    filters: int = 32,
    norm: str = "batch",
) -> keras.Model:
    """Builds the network.

    Args:
        input_shape: `(H, W, C)` or `(D, H, W, C)`; multiples of 32, or None.
        num_classes: classes, background included.
        filters: filters of the first level; they double per level.
        norm: `instance`, `batch` or `none`.

    Returns:
        Model with the input `image` and the output `probabilities` `(..., num_classes)` float32.

    Raises:
        ValueError: an option out of range, or a shape that cannot be halved five times.
    """
    check_levels(input_shape, filters, norm)
    axes = len(input_shape) - 1
    image = x = keras.Input(tuple(input_shape), name="image")
    scores = []
    for level in range(LEVELS):
        x = plain_block(x, filters * 2**level, strides=(1,) * axes, norm=norm, slope=0.0, name=f"encoder{level}")
        x = max_pool(x, (2,) * axes, name=f"pool{level}")
        if level >= LEVELS - 3:
            scores.append(convolution(x, num_classes, kernel=1, name=f"score{level}"))
    third, fourth, deepest = scores
    x = layers.Add(name="fused3")([_enlarge(deepest, 2, name="up4"), fourth])
    x = layers.Add(name="fused2")([_enlarge(x, 2, name="up3"), third])
    model = keras.Model(image, softmax(_enlarge(x, 8, name="up2")), name="fcn8s")
    for name, factor in (("up4", 2), ("up3", 2), ("up2", 8)):
        model.get_layer(name).set_weights([interpolation_kernel(factor, axes, num_classes)])
    return model


def _enlarge(x, factor: int, *, name: str):
    """Enlarges each axis by `factor` with a transposed convolution of 2 * factor voxels."""
    layer = {4: layers.Conv2DTranspose, 5: layers.Conv3DTranspose}[len(x.shape)]
    # the start is set afterwards: an initialiser made of numbers would be written into every model file
    return layer(x.shape[-1], 2 * factor, strides=factor, padding="same", use_bias=False, name=name)(x)


def interpolation_kernel(factor: int, axes: int, channels: int) -> np.ndarray:
    """Returns the kernel of a transposed convolution that interpolates linearly, `(2 factor, ..., out, in)` float32.

    Voxel n of the enlarged axis lies at (n + 1/2) / factor - 1/2 of the old one, so that the faces of the image stay.

    >>> interpolation_kernel(2, 1, 1).ravel().tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    tent = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    weights = tent
    for _ in range(axes - 1):
        weights = np.multiply.outer(weights, tent)
    return (weights[..., None, None] * np.eye(channels)).astype(np.float32)
