"""NAS-Bench-1Shot1: cells whose nodes, not edges, hold the operations.

Zela et al., ICLR 2020; the wiring is that of the authors' code
(automl/nasbench-1shot1, `optimizers/darts/model_search.py`), and of
NAS-Bench-101 where said (Ying et al., ICML 2019; google-research/nasbench,
`lib/model_builder.py`).

A cell reads one input x. State 0 is x, states 1..n are the inner nodes:

  state_i = A_i * op_i(sum_j B_ij * state_j),  j < i,

where each reader of state 0, the output too, sees it through a 1x1
convolution, normalisation and ReLU of its own. The cell's output is the
concatenation of the inner nodes, each times its B (0 where it is not
selected), plus the output's view of state 0, n*C channels, times its B. In
the authors' first version state 0 is concatenated, too: `Space.layout`.

Letters: N nodes of the space (the output is the last), n = N - 1 inner nodes,
C channels of a node, D states that an output selects, V views of state 0.
"""

from rome_jax.families.nasbench1shot1.counts import count, count_supernet
from rome_jax.families.nasbench1shot1.layers import CONVS, ConvNormRelu, knows
from rome_jax.families.nasbench1shot1.nasbench101 import (
    NASBENCH101_EDGES,
    NASBENCH101_OPS,
    NASBENCH101_VERTICES,
    from_nasbench101,
    to_nasbench101,
)
from rome_jax.families.nasbench1shot1.network import (
    DiscreteCell,
    Network,
    extract,
)
from rome_jax.families.nasbench1shot1.search import (
    SearchCell,
    Supernet,
    candidates,
)
from rome_jax.families.nasbench1shot1.wiring import (
    OUTPUT_INPUTS,
    STACKS,
    WIDTHS,
    check,
    make_genotype,
    num_architectures,
    output_input,
    topologies,
)

__all__ = [
    'CONVS', 'NASBENCH101_EDGES', 'NASBENCH101_OPS', 'NASBENCH101_VERTICES',
    'OUTPUT_INPUTS', 'STACKS', 'WIDTHS', 'ConvNormRelu', 'DiscreteCell',
    'Network', 'SearchCell', 'Supernet', 'candidates', 'check', 'count',
    'count_supernet', 'extract', 'from_nasbench101', 'knows', 'make_genotype',
    'num_architectures', 'output_input', 'to_nasbench101', 'topologies',
]
