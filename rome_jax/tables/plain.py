"""Reads plain data stored in Python's pickle format, safely.

A pickle is a program that builds a value, and it may call any function. This
reader never unpickles: it lists the instructions and follows only those that
build dictionaries, lists, tuples, text and numbers. It has no code for any
other instruction, so a file cannot make it do anything else.
"""

import pickletools
from typing import Any

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_MAKERS = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_LITERALS = {
    'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8', 'BINFLOAT', 'BININT',
    'BININT1', 'BININT2', 'LONG1'}
_IGNORED = {'PROTO', 'FRAME'}
_PUTS = {'MEMOIZE', 'BINPUT', 'LONG_BINPUT'}
_GETS = {'BINGET', 'LONG_BINGET'}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_MARK = object()


def read(data: bytes) -> Any:
  """Returns the value that a pickle of protocol 2 to 5 describes.

  Raises:
    ValueError: the pickle is damaged, or holds anything but plain data.

  >>> import pickle
  >>> read(pickle.dumps({'a': [1, 2.]}))
  {'a': [1, 2.0]}
  """
  try:
    return _follow(data)
  except (LookupError, TypeError, AttributeError, UnicodeError) as error:
    raise ValueError(f'a damaged instruction ({error!r})') from error


def _follow(data):
  stack, memo = [], {}
  for instruction, argument, _ in pickletools.genops(data):
    name = instruction.name
    if name in _LITERALS:
      stack.append(argument)
    elif name in _PUTS:
      memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in _GETS:
      stack.append(memo[argument])
    elif name in _MAKERS:
      stack.append(_MAKERS[name]())
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name == 'MARK':
      stack.append(_MARK)
    elif name == 'STOP':
      return stack.pop()
    elif name not in _IGNORED:
      _gather(stack, name)
  raise ValueError('it ends too early')


def _gather(stack, name):
  """Runs an instruction that takes several values off the stack."""
  if name in _TUPLES:
    count = _TUPLES[name]
    stack[-count:] = [tuple(stack[-count:])]
    return
  if name in ('APPENDS', 'SETITEMS', 'TUPLE'):
    values = []
    while (value := stack.pop()) is not _MARK:
      values.append(value)
    values.reverse()
  elif name in ('APPEND', 'SETITEM'):
    count = 1 if name == 'APPEND' else 2
    values = stack[-count:]
    del stack[-count:]
  else:
    raise ValueError(f'the instruction {name} is not one of plain data')
  if name == 'TUPLE':
    stack.append(tuple(values))
  elif name.startswith('APPEND'):
    list.extend(stack[-1], values)
  else:
    dict.update(stack[-1], zip(values[::2], values[1::2], strict=True))
