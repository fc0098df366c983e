"""The supernet in eager PyTorch, to measure the JAX engine against.

What a careful PyTorch user would run: the DARTS search network (Liu et al.
2019, cnn/model_search.py) in which only the sampled edges and operations of
each cell are executed, as in GDAS and ROME. BatchNorm uses the statistics of
the batch and keeps no state; it has no affine part except in the stem.

Images are NCHW. Names in `Supernet.state_dict()`, the whole list (i cell, e
edge as numbered by `rome_jax.spaces.Space`, C the cell's width); all weights
are convolution kernels [out, in / groups, height, width] unless said
otherwise:

  stem.conv.weight                             [3 C0, image channels, 3, 3]
  stem.norm.weight, stem.norm.bias             [3 C0]
  cells.i.preprocess.j.conv.weight             [C, C_in, 1, 1], input j
  cells.i.preprocess.j.{even,odd}.weight       [C / 2, C_in, 1, 1], instead
    of conv where input 0 comes from before a reduction
  cells.i.edges.e.sep_conv_kxk.{0,1}.depthwise.weight   [C, 1, k, k]
  cells.i.edges.e.sep_conv_kxk.{0,1}.pointwise.weight   [C, C, 1, 1]
  cells.i.edges.e.dil_conv_kxk.depthwise.weight         [C, 1, k, k]
  cells.i.edges.e.dil_conv_kxk.pointwise.weight         [C, C, 1, 1]
  cells.i.edges.e.skip_connect.{even,odd}.weight        [C / 2, C, 1, 1],
    only on the strided edges of a reduction cell
  head.weight, head.bias                       [classes, N C], [classes]
"""

import functools
import operator
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rome_jax import spaces


def _norm(channels, affine=False):
  return nn.BatchNorm2d(channels, affine=affine, track_running_stats=False)


class ConvNorm(nn.Module):
  """Convolution and BatchNorm: the stem, the one affine BatchNorm."""

  def __init__(self, in_channels, channels):
    super().__init__()
    self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    self.norm = _norm(channels, affine=True)

  def forward(self, x):
    return self.norm(self.conv(x))


class ReluConvNorm(nn.Module):
  """ReLU, 1x1 convolution, BatchNorm: the usual preprocessing of an input."""

  def __init__(self, in_channels, channels):
    super().__init__()
    self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    self.norm = _norm(channels)

  def forward(self, x):
    return self.norm(self.conv(functional.relu(x)))


class FactorizedReduce(nn.Module):
  """ReLU, two strided 1x1 convolutions a pixel apart, concat, BatchNorm."""

  def __init__(self, in_channels, channels):
    super().__init__()
    half = channels // 2
    self.even = nn.Conv2d(in_channels, half, 1, stride=2, bias=False)
    self.odd = nn.Conv2d(in_channels, channels - half, 1, stride=2, bias=False)
    self.norm = _norm(channels)

  def forward(self, x):
    x = functional.relu(x)
    both = [self.even(x), self.odd(x[:, :, 1:, 1:])]
    return self.norm(torch.cat(both, dim=1))


class SeparableConv(nn.Module):
  """ReLU, depthwise k x k, 1x1, BatchNorm; keeps the size at stride 1."""

  def __init__(self, channels, kernel, stride, dilation=1):
    super().__init__()
    self.depthwise = nn.Conv2d(
        channels, channels, kernel, stride=stride, dilation=dilation,
        padding=dilation * (kernel - 1) // 2, groups=channels, bias=False)
    self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    self.norm = _norm(channels)

  def forward(self, x):
    return self.norm(self.pointwise(self.depthwise(functional.relu(x))))


def _sep_conv(channels, stride, kernel):
  return nn.Sequential(
      SeparableConv(channels, kernel, stride),
      SeparableConv(channels, kernel, 1))


def _dil_conv(channels, stride, kernel):
  return SeparableConv(channels, kernel, stride, dilation=2)


def _max_pool(channels, stride):
  return nn.Sequential(nn.MaxPool2d(3, stride, padding=1), _norm(channels))


def _avg_pool(channels, stride):
  pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
  return nn.Sequential(pool, _norm(channels))


def _skip(channels, stride):
  return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


def _relu_conv(channels, stride, kernel):
  return nn.Sequential(
      nn.ReLU(),
      nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=False),
      _norm(channels))


def _conv_7x1(channels, stride):
  return nn.Sequential(
      nn.ReLU(),
      nn.Conv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False),
      nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False),
      _norm(channels))


# Name -> constructor(channels, stride) of an operation's module. Those after
# S0's are there to be timed by themselves (`benchmarks.ops`).
OPS = {
    'max_pool_3x3': _max_pool,
    'avg_pool_3x3': _avg_pool,
    'skip_connect': _skip,
    'sep_conv_3x3': functools.partial(_sep_conv, kernel=3),
    'sep_conv_5x5': functools.partial(_sep_conv, kernel=5),
    'dil_conv_3x3': functools.partial(_dil_conv, kernel=3),
    'dil_conv_5x5': functools.partial(_dil_conv, kernel=5),
    'sep_conv_7x7': functools.partial(_sep_conv, kernel=7),
    'conv_7x1_1x7': _conv_7x1,
    'nor_conv_1x1': functools.partial(_relu_conv, kernel=1),
    'nor_conv_3x3': functools.partial(_relu_conv, kernel=3),
}


class Cell(nn.Module):
  """One cell: all E x O operations exist, only the given ones are run."""

  def __init__(self, space, in_channels, channels, reduction, after_reduction,
               partial=1):
    super().__init__()
    self.partial = partial
    # Lists, since `torch.compile` would trace NumPy's arrays as tensors.
    self.edge_nodes, self.edge_preds = (
        table.tolist() for table in (space.edge_nodes, space.edge_preds))
    self.ops, self.num_nodes = space.ops, space.num_nodes
    self.num_inputs = space.num_inputs
    first = FactorizedReduce if after_reduction else ReluConvNorm
    self.preprocess = nn.ModuleList([
        first(in_channels[0], channels),
        ReluConvNorm(in_channels[1], channels)])
    self.edges = nn.ModuleList()
    for pred in space.edge_preds:
      stride = 2 if reduction and pred < space.num_inputs else 1
      self.edges.append(nn.ModuleDict(
          {name: OPS[name](channels // partial, stride)
           for name in space.ops}))

  def forward(self, inputs, edges, ops, gates=None):
    states = [f(x) for f, x in zip(self.preprocess, inputs)]
    for node in range(self.num_nodes):
      terms = []
      for slot, (edge, op) in enumerate(zip(edges, ops)):
        if self.edge_nodes[edge] != node:
          continue
        state = states[self.edge_preds[edge]]
        term = self.edges[edge][self.ops[op]](state)
        terms.append(term if gates is None else gates[slot] * term)
      if not terms:
        raise ValueError(f'node {node} has no edge among {edges}')
      # Not `sum`, which would spend an elementwise addition on its zero.
      states.append(functools.reduce(operator.add, terms))
    return torch.cat(states[self.num_inputs:], dim=1)


class MixedCell(Cell):
  """All operations of all edges: `MixedOp` and `Cell` of DARTS and PC-DARTS.

  Liu et al., ICLR 2019, and Xu et al., ICLR 2020, `cnn/model_search.py` and
  `model_search.py` of the authors' code.
  """

  def forward(self, inputs, weights, betas=None):
    states = [f(x) for f, x in zip(self.preprocess, inputs)]
    for node in range(self.num_nodes):
      terms = []
      for edge, of_node in enumerate(self.edge_nodes):
        if of_node == node:
          y = self._mixed(edge, states[self.edge_preds[edge]], weights[edge])
          terms.append(y if betas is None else betas[edge] * y)
      states.append(functools.reduce(operator.add, terms))
    return torch.cat(states[self.num_inputs:], dim=1)

  def _mixed(self, edge, x, weights):
    inside = x if self.partial == 1 else x[:, :x.shape[1] // self.partial]
    y = functools.reduce(operator.add, [
        w * self.edges[edge][op](inside) for w, op in zip(weights, self.ops)])
    if self.partial == 1:
      return y
    rest = x[:, x.shape[1] // self.partial:]
    if y.shape[2:] != x.shape[2:]:
      rest = functional.max_pool2d(rest, 2, 2)
    y = torch.cat([y, rest], dim=1)
    b, c, h, w = y.shape
    y = y.view(b, self.partial, c // self.partial, h, w)
    return y.transpose(1, 2).reshape(b, c, h, w)


class Supernet(nn.Module):
  """The DARTS search network, run along one sampled architecture.

  Reductions sit at cells // 3 and 2 * cells // 3 and double the width.

  Args:
    space: of two inputs per cell; its operations must be in `OPS`.
    cells: number of cells.
    channels: C0, the width of the first cells.
    num_classes: outputs.
    image_channels: of the input.
    memory_format: `torch.contiguous_format` (NCHW, PyTorch's default) or
      `torch.channels_last`, for weights and images.
    make_cell: makes a cell, `Cell` or `MixedCell`; what `forward` gets of
      `arch` is passed on to it.
  """

  def __init__(self, space: spaces.Space, cells: int, channels: int,
               num_classes: int, image_channels: int = 3,
               memory_format: torch.memory_format = torch.contiguous_format,
               make_cell=Cell):
    super().__init__()
    if space.num_inputs != 2:
      raise ValueError(f'space {space.name}: num_inputs={space.num_inputs}, '
                       'the reference knows 2')
    self.memory_format = memory_format
    self.stem = ConvNorm(image_channels, 3 * channels)
    self.cells = nn.ModuleList()
    self.reductions = []
    widths, width, after = [3 * channels] * 2, channels, False
    for i in range(cells):
      reduction = i in (cells // 3, 2 * cells // 3)
      width *= 2 if reduction else 1
      self.cells.append(make_cell(space, widths, width, reduction, after))
      self.reductions.append(reduction)
      widths = [widths[1], space.num_nodes * width]
      after = reduction
    self.head = nn.Linear(widths[1], num_classes)
    self.to(memory_format=memory_format)

  def forward(self, images: torch.Tensor, arch: dict) -> torch.Tensor:
    """Logits of the images along one architecture.

    Args:
      images: [B, image channels, H, W] float; H and W must stay even up to
        the last reduction.
      arch: {'normal': (edges, ops, gates), 'reduce': (edges, ops, gates)}:
        M edge indices, M indices into `space.ops`, and [M] gates that
        multiply the slots' outputs, or None for none. Every node needs at
        least one edge; the order of the slots does not matter.

    Returns:
      [B, num_classes].
    """
    x = self.stem(images.contiguous(memory_format=self.memory_format))
    inputs = [x, x]
    for cell, reduction in zip(self.cells, self.reductions):
      inputs = [inputs[1], cell(
          inputs, *arch['reduce' if reduction else 'normal'])]
    return self.head(inputs[1].mean(dim=(2, 3)))


class MixedSearch:
  """DARTS' or PC-DARTS' first-order step: alpha on one batch, theta on another.

  The work that the package does: where alpha moves, gradients of the weights
  are not computed, which the authors' code does and throws away.

  Args:
    space: of the search.
    cells, channels, num_classes, memory_format: of the `Supernet`.
    partial: k of PC-DARTS, whose edges have weights beta; 1: DARTS.
  """

  def __init__(self, space: spaces.Space, cells: int, channels: int,
               num_classes: int, partial: int = 1,
               memory_format: torch.memory_format = torch.contiguous_format):
    self.space = space
    self.model = Supernet(
        space, cells, channels, num_classes, memory_format=memory_format,
        make_cell=functools.partial(MixedCell, partial=partial))
    edges = space.num_edges
    self.arch = {t: [(1e-3 * torch.randn(*shape)).requires_grad_()
                     for shape in ((edges, len(space.ops)), (edges,))]
                 for t in spaces.CELL_TYPES}
    self.with_beta = partial > 1
    self.leaves = [leaf for pair in self.arch.values()
                   for leaf in pair[:1 + self.with_beta]]
    self.theta_opt = torch.optim.SGD(
        self.model.parameters(), .025, momentum=.9, weight_decay=3e-4)
    self.arch_opt = torch.optim.Adam(
        self.leaves, 3e-4, betas=(.5, .999), weight_decay=1e-3)

  def weights(self):
    """{cell type: (softmax of alpha, softmax of beta at each node)}."""
    found = {}
    for t, (alpha, beta) in self.arch.items():
      betas = torch.cat([torch.softmax(beta[a:b], 0)
                         for a, b in self.space.node_edges])
      found[t] = (torch.softmax(alpha, -1),
                  *((betas,) if self.with_beta else ()))
    return found

  def step(self, train, valid) -> None:
    """Both halves; batches are (images [B,3,H,W], labels [B])."""
    images, labels = valid
    loss = functional.cross_entropy(
        self.model(images, self.weights()), labels)
    for leaf, grad in zip(
        self.leaves, torch.autograd.grad(loss, self.leaves)):
      leaf.grad = grad
    self.arch_opt.step()
    images, labels = train
    with torch.no_grad():
      weights = self.weights()
    self.theta_opt.zero_grad(set_to_none=True)
    functional.cross_entropy(self.model(images, weights), labels).backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), 5.)
    self.theta_opt.step()


def random_arch(space: spaces.Space, rng: np.random.Generator) -> dict:
  """A uniform architecture without gates, in the form of `Supernet.forward`.

  Per node `in_degree` distinct edges (ROME Eq. 9), per edge one operation.
  """
  arch = {}
  for cell_type in spaces.CELL_TYPES:
    edges = [
        int(edge)
        for (start, stop), degree in zip(space.node_edges, space.in_degrees)
        for edge in sorted(
            rng.choice(np.arange(start, stop), degree, replace=False))]
    ops = [int(op) for op in rng.integers(len(space.ops), size=len(edges))]
    arch[cell_type] = (edges, ops, None)
  return arch


def step(model: Supernet, arch: dict, images: torch.Tensor,
         labels: torch.Tensor) -> torch.Tensor:
  """Cross entropy and its gradients to every weight of the sampled path.

  Gradients are left in `.grad`; weights outside the path have None there.

  Args:
    model: the supernet.
    arch: see `Supernet.forward`; gates that require a gradient get one.
    images: [B, image channels, H, W].
    labels: [B] int.

  Returns:
    The loss, a detached scalar.
  """
  model.zero_grad(set_to_none=True)
  loss = functional.cross_entropy(model(images, arch), labels)
  loss.backward()
  return loss.detach()


def time_sample(
    arch_list: Sequence[dict],
    batch: int,
    channels_last: bool,
    repeats: int,
    *,
    space: spaces.Space = spaces.S0,
    cells: int = 8,
    channels: int = 16,
    num_classes: int = 10,
    image_size: int = 32,
) -> list[float]:
  """Times `step` on random images; sets PyTorch's threads to all cores.

  Args:
    arch_list: architectures, see `Supernet.forward`.
    batch: B.
    channels_last: the memory format, instead of PyTorch's default.
    repeats: timed rounds over arch_list, after one untimed round.
    space: of the supernet; the other sizes are the network's too.
    cells: number of cells.
    channels: C0.
    num_classes: outputs.
    image_size: H and W, pixels.

  Returns:
    Seconds of each step, len(arch_list) x repeats of them; a whole round
    before the next.
  """
  torch.set_num_threads(os.cpu_count())
  memory_format = (
      torch.channels_last if channels_last else torch.contiguous_format)
  model = Supernet(
      space, cells, channels, num_classes, memory_format=memory_format)
  images = torch.randn(batch, 3, image_size, image_size).contiguous(
      memory_format=memory_format)
  labels = torch.randint(num_classes, (batch,))
  seconds = []
  for _ in range(repeats + 1):
    for arch in arch_list:
      start = time.perf_counter()
      step(model, arch, images, labels)
      seconds.append(time.perf_counter() - start)
  return seconds[len(arch_list):]


def peak_bytes(partial: int, cells: int, channels: int, batch: int,
               image_size: int, channels_last: bool) -> int:
  """What a `MixedSearch` step adds to the memory of this process, at most.

  For a process of its own, on Linux.
  """
  memory_format = (
      torch.channels_last if channels_last else torch.contiguous_format)
  search = MixedSearch(
      spaces.S0, cells, channels, 10, partial, memory_format)
  both = [(torch.randn(batch, 3, image_size, image_size).contiguous(
      memory_format=memory_format), torch.randint(10, (batch,)))
      for _ in range(2)]
  # Not ru_maxrss, which a process has from the one that started it.
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = _kilobytes('VmRSS')
  search.step(*both)
  return 1024 * (_kilobytes('VmHWM') - before)


def _kilobytes(name):
  """A figure of /proc/self/status: VmRSS, or VmHWM, the largest so far."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{name}:\s+(\d+) kB', status)[1])


if __name__ == '__main__':  # For `benchmarks.methods`: prints `peak_bytes`.
  print(peak_bytes(*map(int, sys.argv[1:])))
