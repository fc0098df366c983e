"""The mixture of the PyTorch reference beside the engine's."""

import jax
import numpy as np
import pytest

from benchmarks import search_step
from rome_jax import families, spaces
from rome_jax.engine import archs
from rome_jax.engine import weights as weights_lib

torch = pytest.importorskip('torch')

from benchmarks import torch_reference as reference  # noqa: E402

SMALL = spaces.Space(
    'small', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'), num_nodes=1)


@pytest.mark.parametrize('k', [1, 4])
def test_loss_and_gradients_are_the_engines(k, quick_jit):
  """DARTS' mixture and PC-DARTS', same weights, float32."""
  channels, batch = 4, 4
  net = families.supernet(
      SMALL, spaces.Sizes(3, channels, 10, 8), partial=k, evaluator='batched')
  theta = weights_lib.init_supernet(net, 0, 8, 3)
  torch.manual_seed(0)
  search = reference.MixedSearch(SMALL, 3, channels, 10, k)
  search.model.load_state_dict({
      name: torch.tensor(value) for name, value in
      search_step.to_torch(theta, SMALL).items()})
  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, 8, 8, 3)).astype(np.float32)
  labels = np.arange(batch) % 10

  def loss(theta, gates):
    logits = net.apply({'params': theta}, images, {
        t: archs.all_slots(SMALL, g, t) for t, g in gates.items()})
    return -jax.nn.log_softmax(logits)[np.arange(batch), labels].mean()

  weights = search.weights()
  gates = {t: (w[0] * w[1][:, None] if k > 1 else w[0]).detach().numpy()
           for t, w in weights.items()}
  value, (dtheta, _) = quick_jit(jax.value_and_grad(loss, (0, 1)))(
      theta, gates)
  found = torch.nn.functional.cross_entropy(
      search.model(torch.tensor(images.transpose(0, 3, 1, 2)), weights),
      torch.tensor(labels))
  found.backward()
  np.testing.assert_allclose(found.item(), value, rtol=1e-5)
  expected = search_step.to_torch(dtheta, SMALL)
  for name, p in search.model.named_parameters():
    np.testing.assert_allclose(
        p.grad.numpy(), expected[name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_a_step_moves_weights_and_architecture():
  torch.manual_seed(0)
  search = reference.MixedSearch(SMALL, 3, 4, 10, 4)
  batch = torch.randn(4, 3, 8, 8), torch.arange(4)
  before = [p.detach().clone() for p in
            (*search.model.parameters(), *search.leaves)]
  search.step(batch, batch)
  for a, b in zip(before, (*search.model.parameters(), *search.leaves)):
    assert (a != b).any()
