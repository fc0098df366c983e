"""The network of a genotype of NAS-Bench-1Shot1."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rome_jax.engine import layers, operations
from rome_jax.engine.weights import STACKED
from rome_jax.families.images import check_images
from rome_jax.families.nasbench1shot1.layers import (
    CONVS,
    ConvNormRelu,
    halve,
    operation,
    stacked,
)
from rome_jax.families.nasbench1shot1.wiring import (
    ADDED,
    CONCATENATED,
    check_output_input,
    check_widths,
    live_nodes,
    read_wiring,
)
from rome_jax.spaces import genotypes


class DiscreteCell(nn.Module):
  """A cell of a derived network; nodes that nobody reads are left out.

  Attributes:
    genotype: its normal cell.
    features: C.
    norm: function that makes a normalisation layer.
    widths: 'search' or 'nasbench101'.
    output_input: 'added' or 'concatenated', with widths='search'.
  """

  genotype: genotypes.Genotype
  features: int
  norm: Callable
  widths: str
  output_input: str

  @nn.compact
  def __call__(self, x, drop_path=None):
    """The next cell's input [B,H,W,.].

    Its width is C with widths='nasbench101'. In the search network's cell it
    is D*C for D states that the output reads, but n*C, all inner nodes, where
    one of them is the cell's input and is added.

    Args:
      x: the output of the cell before.
      drop_path: function applied to the output of every operation but the
        identity, or None.
    """
    def view(channels, reader):
      return ConvNormRelu(
          channels, 1, self.norm, name=f'{reader}_input')(x)

    states = {}
    for i, node in live_nodes(
        self.genotype, self.features, self.widths).items():
      terms = [states[p][..., :node.channels] if p else
               view(node.channels, f'node{i}') for p in node.parents]
      module = operation(node.op, node.channels, self.norm)
      y = module.clone(parent=self, name=f'node{i}_{node.op}')(
          sum(terms[1:], terms[0]))
      if drop_path is not None and node.op != 'skip_connect':
        y = drop_path(y)
      states[i] = y
    concat = sorted(self.genotype.normal_concat)
    inner = [states[i] for i in concat if i]
    if concat[0] != 0:
      return jnp.concatenate(inner, -1)
    if self.widths == 'nasbench101':
      first = view(self.features, 'output')
      return first + jnp.concatenate(inner, -1) if inner else first
    if self.output_input == CONCATENATED:
      return jnp.concatenate([view(self.features, 'output'), *inner], -1)
    n = len(self.genotype.normal)
    first = view(n * self.features, 'output')
    silent = jnp.zeros_like(first[..., :self.features])
    return first + jnp.concatenate(
        [states[i] if i in concat else silent for i in range(1, n + 1)], -1)


class Network(nn.Module):
  """The network of a genotype, an ordinary Flax module.

  Collections and rngs are those of `darts.Network`.

  Attributes:
    genotype: a `genotypes.Genotype` of one cell type.
    cells: number of cells, a multiple of 3 (9 in the papers).
    channels: C of the first cells (16 in 1Shot1, 128 in NAS-Bench-101).
    num_classes: size of the output.
    widths: 'search', the default, is the supernet's cell: every node has C
      channels, the output is the concatenation of the nodes that it reads,
      and a 1x1 convolution follows the last cell. 'nasbench101' is the
      network that NAS-Bench-101's tables were made with: the nodes that the
      output reads share C, state 0 is added to them.
    remat: see `layers.rematerialised`.
    output_input: what the output does with the cell's input if it reads it,
      with widths='search': 'added', as in the authors' code since February
      2020, or 'concatenated', as in their first version.
  """

  genotype: genotypes.Genotype
  cells: int
  channels: int
  num_classes: int
  widths: str = 'search'
  remat: str = 'none'
  output_input: str = ADDED

  def __post_init__(self):
    check_widths(self.widths)
    check_output_input(self.output_input)
    read_wiring(genotypes.validate(self.genotype))
    super().__post_init__()

  @nn.compact
  def __call__(self, images, train=False, drop_path=0.):
    """Logits [B,classes] of images [B,H,W,.]; see `darts.Network`."""
    check_images(images)
    norm = layers.batch_norm(images, train)
    run = layers.rematerialised(
        layers.with_drop_path(drop_path if train else 0), self.remat)
    x = ConvNormRelu(self.channels, 3, norm, name='stem')(images)
    for i, features, smaller in stacked(self.cells, self.channels):
      x = halve(x, self.widths) if smaller else x
      x = run(DiscreteCell(
          self.genotype, features, norm, self.widths, self.output_input,
          name=f'cell{i}'), x)
      self.sow('intermediates', layers.FEATURES, x)
    if self.widths == 'search':
      x = operations.ReluConvNorm(features, norm, name='postprocess')(x)
    return layers.Linear(self.num_classes, name='head')(layers.pooled(x))


def extract(params: dict[str, Any], genotype: genotypes.Genotype,
            output_input: str = ADDED) -> dict[str, Any]:
  """Takes the `params` of a Network with widths='search' out of the supernet's.

  BatchNorm's scale is 1 and its bias 0; the supernet has them in the stem
  only.

  Args:
    params: of `Supernet`.
    genotype: one of its space.
    output_input: as in `Network`; that of the supernet's space.
  """
  check_output_input(output_input)
  rows = functools.partial(_selected_rows, genotype, output_input)
  named = {name: params[name] for name in ('stem', 'head')}
  for name in params:
    if name.startswith('cell'):
      edges = params[name][STACKED]
      views = edges['input']['kernel']
      # The stem gives one state to the first cell.
      views = views if name == 'cell0' else rows(views)
      named[name] = _extract_cell(edges, views, genotype)
  kernel = rows(params['postprocess']['Pointwise_0']['kernel'])
  named['postprocess'] = {
      'Pointwise_0': {'kernel': kernel}, 'BatchNorm_0': _affine(kernel)}
  return named


def _selected_rows(genotype, output_input, kernel):
  """[...,C',C]: the rows of C' that a cell's output fills."""
  n, concat = len(genotype.normal), sorted(genotype.normal_concat)
  if output_input == CONCATENATED:
    n += 1
  elif 0 in concat:
    return kernel  # The input is added to every block.
  else:
    concat = [i - 1 for i in concat]
  *lead, c_in, c_out = kernel.shape
  blocks = kernel.reshape(*lead, n, c_in // n, c_out)
  return blocks[..., concat, :, :].reshape(*lead, -1, c_out)


def _extract_cell(edges, views, genotype):
  """The params of a discrete cell; `views` [V,C',C] are its kernels of 0."""
  tree, n = {}, len(genotype.normal)
  for i, node in live_nodes(genotype, 1, 'search').items():
    if 0 in node.parents:
      tree[f'node{i}_input'] = _layer(views[i - 1])
    if node.op in CONVS:
      tree[f'node{i}_{node.op}'] = _layer(
          edges[node.op]['conv']['kernel'][i - 1])
    elif node.op in edges:
      tree[f'node{i}_{node.op}'] = jax.tree.map(
          lambda leaf, row=i - 1: leaf[row], edges[node.op])
  if 0 in genotype.normal_concat:
    # The output's views, beside each other.
    tree['output_input'] = _layer(jnp.concatenate(list(views[n:]), -1))
  return tree


def _affine(kernel):
  c = kernel.shape[-1:]
  return {'scale': np.ones(c, np.float32), 'bias': np.zeros(c, np.float32)}


def _layer(kernel):
  return {'conv': {'kernel': kernel}, 'norm': _affine(kernel)}
