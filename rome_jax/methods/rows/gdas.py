"""GDAS (Dong and Yang, CVPR 2019): every edge active, one operation on each."""

from rome_jax.methods import derive, laws
from rome_jax.methods.method import ARCH, THETA, Method, gumbel_of_arch, normal
from rome_jax.methods.rows.rome import hard_cells


def _init(space, key, alpha_std=1e-3, beta_std=1e-3):
  # Edges have weights only where nodes hold the operations.
  size = space.num_edges if space.sites == 'nodes' else 0
  return normal(space, key, size, alpha_std, beta_std)


def _check(space, section):
  if section.k != 1:
    return (f"search.k={section.k} must be 1 with method='gdas', which samples "
            'one architecture a step')
  if space.absent and space.has_topology:
    return (f"method='gdas' needs every edge, but space={space.name} keeps "
            f"{space.in_degrees} of a node's (in_degree={space.in_degree})")
  return None


gdas = Method(
    name='gdas',
    init=_init,
    sample=hard_cells(laws.sample_all_edges, lambda space: space.fan_ins),
    derive=derive.best_pairs,
    updates=(ARCH, THETA),
    noise=gumbel_of_arch,
    # One sample a step: DARTS' rate; ROME doubles it for the sum of K.
    recipe={'search.k': 1, 'search.lr': .025},
    check=_check)
