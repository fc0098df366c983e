"""SDARTS (Chen and Hsieh, ICML 2020): weights that bear perturbed gates.

DARTS whose theta moves along its gradient at gates near softmax(alpha), so
that the loss becomes smooth in them:

    SDARTS-RS:  theta minimises E L_train(theta, p + U(-e, e))
    SDARTS-ADV: theta minimises max L_train(theta, p + d), |d| <= e

where p = softmax(alpha), the sum is brought back to gates of 0..1 that sum to
1 on each edge, and the maximum is sought by 7 signed steps (`rules`). e grows
from .03 towards .3, once an epoch. Alpha moves as in `darts`, first order; the
authors ran both orders. A step of SDARTS-ADV has, besides the two gradients of
DARTS, seven of the gates and two forward passes.

Departure from the authors' code (xiangning-chen/SmoothDARTS): BatchNorm uses
the statistics of the batch in the search for the worst gates too.
"""

from rome_jax.methods import rules
from rome_jax.methods.method import ARCH, THETA
from rome_jax.methods.rows.darts import darts

sdarts_rs = darts._replace(
    name='sdarts_rs',
    updates=(ARCH, THETA._replace(rule=rules.at_random_gates())))

sdarts_adv = darts._replace(
    name='sdarts_adv',
    updates=(ARCH, THETA._replace(rule=rules.at_worst_gates(steps=7))))
