"""The examples in the docstrings of spaces and families."""

import doctest
import importlib
import pkgutil

import pytest

import rome_jax.families
import rome_jax.spaces

MODULES = [
    module.name for package in (rome_jax.spaces, rome_jax.families)
    for module in pkgutil.walk_packages(
        package.__path__, f'{package.__name__}.')]


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
  count = sum(
      len(test.examples) for name in MODULES
      for test in doctest.DocTestFinder().find(importlib.import_module(name)))
  assert count > 50
