"""EfficientNet-Lite0 without its last layer: a small network whose features compare images.

    images (n, 3, 224, 224) float, (x - 127) / 128  ->  features (n, 1280) float32

The network is EfficientNet (Tan and Le 2019) in the Lite variant of TensorFlow: ReLU6, no squeeze and excitation,
padding "same". Each batch norm is folded into the convolution before it. The weights are a state dict of torch with the
names of EfficientNet-PyTorch. Must not import other modules of vqgpt.
"""

import io
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURES = 1280
NORM_EPSILON = 1e-3
STEM_WIDTH = 32
STAGES = ((1, 1, 16), (2, 2, 24), (2, 2, 40), (3, 2, 80), (3, 1, 112), (4, 2, 192), (1, 1, 320))
# of each: how many blocks, the stride of the first, the width; the sizes of kernels follow from the weights


class Block(nn.Module):
    """An inverted residual block: expand, filter each channel by itself, project; added to its input where it fits."""

    def __init__(self, layers: list[nn.Module], is_residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.is_residual = is_residual

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H', W')."""
        result = self.layers(images)
        return result + images if self.is_residual else result


def load_lite0_features(data: bytes) -> nn.Sequential:
    """The network of a file of torch with a state dict, on the CPU in eval mode. The digest was checked before."""
    weights = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return lite0_features(weights)


def lite0_features(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The network of a state dict, in eval mode. Raises KeyError if one of the weights is missing."""
    layers: list[nn.Module] = _convolution(weights, "_conv_stem", "_bn0", 2)
    width, number = STEM_WIDTH, 0
    for blocks, first_stride, new_width in STAGES:
        for stride in (first_stride, *[1] * (blocks - 1)):
            layers.append(_block(weights, number, stride, stride == 1 and width == new_width))
            width, number = new_width, number + 1
    layers += _convolution(weights, "_conv_head", "_bn1", 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def _block(weights: Mapping[str, Tensor], number: int, stride: int, is_residual: bool) -> Block:
    name = f"_blocks.{number}"
    layers: list[nn.Module] = []
    if f"{name}._expand_conv.weight" in weights:
        layers += _convolution(weights, f"{name}._expand_conv", f"{name}._bn0", 1)
    layers += _convolution(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride)
    project, _ = _convolution(weights, f"{name}._project_conv", f"{name}._bn2", 1)
    return Block([*layers, project], is_residual)


def _convolution(weights: Mapping[str, Tensor], name: str, norm: str, stride: int) -> list[nn.Module]:
    """A convolution with its batch norm folded in, and ReLU6; with stride 2, one pixel less is added before than after.

    That is TensorFlow's padding "same" at even sizes.
    """
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
    kernel = (weights[f"{name}.weight"] * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    out_width, in_width, size, _ = kernel.shape
    groups = out_width if in_width == 1 else 1
    pad = size // 2
    layer = nn.Conv2d(in_width * groups, out_width, size, stride, pad if stride == 1 else 0, groups=groups)
    layer.weight = nn.Parameter(kernel)
    layer.bias = nn.Parameter(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
    before: list[nn.Module] = [] if stride == 1 else [nn.ZeroPad2d((pad - 1, pad, pad - 1, pad))]
    return [*before, layer, nn.ReLU6(inplace=True)]
