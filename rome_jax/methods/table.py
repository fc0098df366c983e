"""The table of methods, a row each."""

import jax.numpy as jnp

from rome_jax.methods import derive as derive_lib
from rome_jax.methods import laws
from rome_jax.methods import method as method_lib

METHODS: dict[str, method_lib.Method] = {
    'rome_v1': method_lib.Method(
        beta_sizes=laws.pair_sizes,
        degrees=lambda space: space.in_degrees,
        sample_edges=laws.sample_pairs,
        derive_edges=derive_lib.likeliest_subset,
        log_prob_edges=laws.log_prob_pairs),
    'rome_v2': method_lib.Method(
        beta_sizes=lambda space: space.fan_ins,
        degrees=lambda space: space.in_degrees,
        sample_edges=laws.sample_top_k,
        derive_edges=derive_lib.strongest_edges,
        log_prob_edges=laws.log_prob_independent),
    'gdas': method_lib.Method(
        # Edges have weights only where nodes hold the operations.
        beta_sizes=lambda space: (
            space.fan_ins if space.sites == 'nodes' else ()),
        degrees=lambda space: space.fan_ins,
        sample_edges=laws.sample_all_edges,
        derive_edges=derive_lib.strongest_edges,
        log_prob_edges=lambda space, beta, edges: jnp.zeros(())),
}
