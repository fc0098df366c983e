"""ONNX through jax2onnx, with the stock form of each operation.

Compared with the network under onnxruntime before anything is written.
"""

import contextlib
import logging

import numpy as np

from rome_jax.data import splits
from rome_jax.engine import kernels
from rome_jax.exports import network as network_lib
from rome_jax.exports.network import Exportable

INPUT, OUTPUT = 'images', 'logits'


def export(item: Exportable) -> tuple[bytes, float]:
  """(an ONNX model, its largest difference to the network).

  The model takes `images`, [B,H,W,C] float32 of any B.

  Raises:
    UserError: jax2onnx or onnxruntime is not installed, or the model differs
      from the network.
  """
  jax2onnx = splits.require('jax2onnx', 'export to ONNX')
  onnxruntime = splits.require('onnxruntime', 'export to ONNX')
  shape = ('B', item.image_size, item.image_size, item.image_channels)
  with kernels.traced_for(kernels.STOCK), _quiet('onnx_ir'), (
      network_lib.tracing('ONNX')):
    model = jax2onnx.to_onnx(
        network_lib.function_of(item), inputs=[shape], model_name='rome_jax')
  _name(model.graph)
  # Some of the shapes that jax2onnx notes inside are those of other layouts.
  del model.graph.value_info[:]
  data = model.SerializeToString()
  session = onnxruntime.InferenceSession(
      data, providers=['CPUExecutionProvider'])
  name = session.get_inputs()[0].name

  def run(images: np.ndarray) -> np.ndarray:
    return session.run(None, {name: images})[0]

  # onnxruntime has float32, which GPUs and TPUs have only when asked.
  return data, network_lib.check(
      item, run, 'the ONNX model', precision='highest')


@contextlib.contextmanager
def _quiet(name):
  """Hides warnings of a logger that a user can do nothing about."""
  logger = logging.getLogger(name)
  before = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(before)


def _name(graph):
  """Gives the only input and output the names of the documentation."""
  for values, wanted in ((graph.input, INPUT), (graph.output, OUTPUT)):
    old = values[0].name
    values[0].name = wanted
    for node in graph.node:
      for names in (node.input, node.output):
        for i, name in enumerate(names):
          if name == old:
            names[i] = wanted
