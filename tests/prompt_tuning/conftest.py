"""Faults that can be had for real."""

import contextlib
import resource

import pytest


@pytest.fixture
def file_size_limit():
  """`with file_size_limit(n)`: longer files fail, as on a full disk."""
  @contextlib.contextmanager
  def limited(size: int):
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  return limited
