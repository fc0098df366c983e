"""What a run settles once, before anything is built."""

from typing import NamedTuple

from jax.sharding import Mesh

from rome_jax.families import Family
from rome_jax.methods.method import Method
from rome_jax.spaces import Sizes, Space
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe


class Setup(NamedTuple):
  """Names resolved to values; made at the door, by `config.setup.make_setup`.

  Attributes:
    space: the search space.
    family: the networks around its cells.
    method: the row.
    sizes: of the supernet; those of the data are in it.
    stem: 'cifar' or 'imagenet'.
    mesh: devices, of `devices.mesh.make_mesh`; None for one device.
  """

  space: Space
  family: Family
  method: Method
  sizes: Sizes
  stem: str
  mesh: Mesh | None = None

  def sizes_of(self, recipe: SearchRecipe | RetrainRecipe) -> Sizes:
    """The sizes of the network that a recipe trains."""
    return self.sizes._replace(cells=recipe.cells, channels=recipe.channels)
