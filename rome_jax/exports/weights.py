"""safetensors: the weights by name, with what they belong to as metadata."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from rome_jax.data import splits
from rome_jax.exports.network import Exportable


def names(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """{'params/stem_conv/kernel': array} of {collection: tree}.

  >>> list(names({'params': {'head': {'bias': np.zeros(2)}}}))
  ['params/head/bias']
  """
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  return {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `names`."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def export(item: Exportable) -> bytes:
  """A safetensors file; its metadata has the facts as JSON under `rome_jax`.

  Raises:
    UserError: safetensors is not installed.
  """
  library = splits.require('safetensors.numpy', 'export to safetensors')
  return library.save(names(item.variables),
                      metadata={'rome_jax': json.dumps(item.facts)})
