"""P-DARTS (Chen et al., ICCV 2019): DARTS in stages.

A supernet of few cells cannot tell what is good in a deep network, and a deep
one with all candidates does not fit into memory. So the search goes through
stages of 5, 11 and 17 cells; after each of the first two every edge keeps the
candidates of largest softmax(alpha), 8 -> 5 -> 3 (`none` counts like any
other). Each stage begins anew, weights and alpha; alpha moves from its epoch
10 of 25 on. Dropout on identities, strongest at the start of each stage, keeps
skips from winning by being trained first; the derived normal cell has at most
two of them.

Its rates in the three stages are those of the command in the authors' README;
the paper has 0, .4, .7 for CIFAR-10 and .1, .2, .3 for CIFAR-100. Read from the
authors' code (chenxin061/pdarts, `train_search.py`). Departure: the code
derives with any number of skips and prints all, here it is the paper's two.
"""

from rome_jax.methods import derive
from rome_jax.methods.method import Stages
from rome_jax.methods.rows.darts import check_edges, darts

p_darts = darts._replace(
    name='p_darts',
    derive=derive.limited_skips(2),
    plan=Stages(),
    recipe={'search.k': 1, 'search.lr': .025, 'search.lr_end': 0.,
            'search.epochs': 25, 'search.batch_size': 96,
            'search.alpha_lr': 6e-4, 'search.alpha_start': 10,
            'search.alpha_clip': 5., 'search.stage_skip_dropout': '.1,.4,.7'},
    check=check_edges)
