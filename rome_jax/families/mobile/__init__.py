"""The mobile family: a chain of MBConv blocks in MobileNetV2's skeleton.

ProxylessNAS (Cai et al., ICLR 2019; mit-han-lab/proxylessnas,
`search/models/super_nets/super_proxyless.py`):

    3x3 convolution to 32, BatchNorm, ReLU6
    MBConv of expansion 1 and kernel 3 to 16
    the searchable blocks, in stages (`Space.layout`)
    1x1 convolution to 1280, BatchNorm, ReLU6; mean over pixels; linear

MBConv is a 1x1 expansion and a depthwise convolution, each followed by
BatchNorm and ReLU6, and a 1x1 projection followed by BatchNorm. A block that
keeps size and width adds its input; such a block may also be `zero`, which
leaves the shortcut only.

`channels` scales the widths: they are the paper's times channels / 32
(MobileNet's width multiplier), rounded to multiples of 8; `channels=32` is
the paper's network. It need not be an integer: ProxylessNAS-GPU has 43.2.

NAS-Bench-Macro (Su et al., CVPR 2021; xiusu/NAS-Bench-Macro, `train/model.py`)
is the same but for ReLU, BatchNorm's defaults, no MBConv before the blocks, a
first stage that strides, and `identity` among the candidates: a 1x1 convolution
with BatchNorm where a block changes size or width. It is the family
'nasbench_macro'.

The stem 'imagenet' strides, as published: 224 pixels end at 7. 'cifar' is for
small images: neither the stem nor the first stage strides, so 32 pixels end
at 4.
"""

from rome_jax.families.mobile.counts import count, count_supernet
from rome_jax.families.mobile.geometry import (
    ZERO,
    Block,
    Run,
    Widths,
    blocks,
    chain,
    check,
    chosen,
    fixed_widths,
    kernel_and_expansion,
    knows,
    runs,
    scaled,
)
from rome_jax.families.mobile.network import (
    EPSILON,
    MOMENTUM,
    MBConv,
    Network,
    Supernet,
    candidates,
    extract,
)
from rome_jax.families.mobile.published import PROXYLESS, Published

__all__ = [
    'EPSILON', 'MOMENTUM', 'PROXYLESS', 'ZERO', 'Block', 'MBConv', 'Network',
    'Published', 'Run', 'Supernet', 'Widths', 'blocks', 'candidates', 'chain',
    'check', 'chosen', 'count', 'count_supernet', 'extract', 'fixed_widths',
    'kernel_and_expansion', 'knows', 'runs', 'scaled',
]
