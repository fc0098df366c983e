"""Random search as in DARTS (Liu et al., ICLR 2019): no supernet at all.

24 uniform architectures of the space are each trained alone, with the recipe
of the retraining, for 100 epochs on the theta half of the training images and
tested on the alpha half. The most accurate is derived and retrained as usual.

The rest of the row is SPOS', for those who train its supernet from Python.
"""

from rome_jax.methods.method import TrainRandom
from rome_jax.methods.rows.single_path import spos

random_search = spos._replace(
    name='random_search',
    plan=TrainRandom(),
    recipe={'search.k': 1, 'search.candidates': 24, 'search.epochs': 100})
