"""rome_jax: memory-efficient differentiable architecture search in JAX."""

__version__ = '0.1.0'
