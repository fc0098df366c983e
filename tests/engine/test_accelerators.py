"""Every kind of step lowers for GPU and TPU, with the operations for them.

That it runs there, and how fast, no machine without one can show.
"""

import functools

import scripts

lowered = functools.partial(scripts.printed, 'accelerators.py', timeout=600)


def test_steps_lower_for_accelerators_with_stock_operations():
  for name, number in lowered('gpu', 'cuda', 'tpu').items():
    # The operations of NAS-Bench-201 and NAS-Bench-1Shot1 have none.
    assert (number > 0) == ('nasbench' not in name), name


def test_the_cpu_has_its_own_operations():
  assert set(lowered('cpu', 'cpu').values()) == {0}
