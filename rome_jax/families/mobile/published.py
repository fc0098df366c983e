"""Published networks of the mobile family."""

import re
from typing import NamedTuple

from rome_jax import spaces
from rome_jax.families.mobile.geometry import ZERO, chain
from rome_jax.spaces import Space
from rome_jax.spaces.genotypes import Genotype


class Published(NamedTuple):
  """A published network of this skeleton, for 224 pixels and 1000 classes.

  Attributes:
    space: the layout.
    genotype: one operation per block.
    channels: 32 times the width multiplier.
  """

  space: Space
  genotype: Genotype
  channels: float


def _read(text):
  """'k3e6' is mbconv_k3_e6 and '-' is zero."""
  return chain(
      ZERO if word == '-' else re.sub(r'k(\d)e(\d)', r'mbconv_k\1_e\2', word)
      for word in text.split())


# Operations and widths as in osmr/imgclsmob@86c1d36,
# `pytorch/pytorchcv/models/proxylessnas.py`; those of `proxyless_mobile` are
# also in the authors' own `logs/proxyless_mobile_10_latency.txt`. Found in
# MOBILE at width multipliers 1.12 and 1.35; the two mobile ones have a first
# stage of their own width (and the larger one another fifth stage).
_MOBILE_STAGES = (
    (32, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
_MOBILE_14_STAGES = (
    (28, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (184, 4, 2), (320, 1, 1))
_MOBILE_OPS = _read('''
    k5e3 k3e3 - -  k7e3 k3e3 k5e3 k5e3  k7e6 k5e3 k5e3 k5e3
    k5e6 k5e3 k5e3 k5e3  k7e6 k7e6 k7e3 k7e3  k7e6''')

PROXYLESS = {
    'proxyless_cpu': Published(spaces.MOBILE, _read('''
        k3e6 k3e3 k3e3 k3e3  k3e6 k3e3 k3e3 k5e3  k3e6 - - k3e3
        k5e6 k3e3 k3e3 k3e3  k5e6 k5e3 k5e3 k3e3  k5e6'''), 32 * 1.12),
    'proxyless_gpu': Published(spaces.MOBILE, _read('''
        k5e3 - - -  k7e3 - - k3e3  k7e6 - - k5e3
        k5e6 - k3e3 k5e3  k7e6 k7e6 k7e6 k5e6  k7e6'''), 32 * 1.35),
    'proxyless_mobile': Published(
        spaces.mobile('proxyless_mobile', _MOBILE_STAGES), _MOBILE_OPS, 32),
    'proxyless_mobile_14': Published(
        spaces.mobile('proxyless_mobile_14', _MOBILE_14_STAGES), _MOBILE_OPS,
        32 * 1.4)}
