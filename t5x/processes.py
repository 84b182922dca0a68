"""Several processes as one program: they find each other, and fail together.

JAX joins processes through a coordinator in the first of them. By itself it
lets a process whose fellow has failed wait for minutes without saying why.
Here the first failure is left with the coordinator, where all processes look
every second; they show it and end.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
from jax._src import clusters
from jax._src import distributed

# Neither of them is public: clusters is what jax.distributed.initialize asks
# where it is, and distributed holds the connection to the coordinator.

_FAILURE = 't5x/failure'
_SEEN = 't5x/seen'
_FINISHED = 't5x/finished'
_LOOK_SECONDS = 1.0
_PARTING_SECONDS = 5.0
_A_WEEK_MS = 7 * 24 * 3_600_000


class Stopped(SystemExit):
  """The end of a run that was told to stop, in all processes alike.

  Its exit code is a shell's for SIGTERM, so that whoever restarts what has not
  finished restarts it.
  """

  def __init__(self) -> None:
    super().__init__(128 + signal.SIGTERM)


def _cluster() -> Any:
  """The cluster that JAX would find this process in; None for none."""
  for cluster in clusters.ClusterEnv._cluster_types:
    # Any process in a Kubernetes cluster is taken for one of a Job by JAX.
    alone = (cluster.__name__ == 'K8sCluster'
             and 'JOB_COMPLETION_INDEX' not in os.environ)
    if not alone and not cluster.opt_in_only_method:
      try:
        if cluster.is_env_present():
          return cluster
      except (OSError, RuntimeError) as error:
        logging.warning('No cluster can be asked for (%s).', error)
  return None


def join(
    coordinator_address: str | None,
    process_count: int | None,
    process_index: int | None,
    *,
    asked: bool = False,
    timeout: int | None = None,
) -> None:
  """Joins the other processes, if there are any.

  What is not given is taken from the cluster: TPU pods, Slurm, Open MPI, and
  Kubernetes where the package `kubernetes` is installed. A process alone starts
  nothing.

  Args:
    coordinator_address: `host:port` of process 0.
    process_count: how many processes there are; 1 joins none, whatever the
      cluster says.
    process_index: which one this is.
    asked: there must be other processes.
    timeout: seconds to wait for them; None is JAX's 300.

  Raises:
    ValueError: if something is missing that no cluster says.
  """
  if process_count == 1:
    return
  flags = {'coordinator_address': coordinator_address,
           'process_count': process_count, 'process_index': process_index}
  known = flags | {'coordinator_address': (
      coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS'))}
  missing = [name for name, value in known.items() if value is None]
  cluster = _cluster() if missing else None
  if cluster is None and not asked and not any(
      value is not None for value in flags.values()):
    _require_no_other_launcher()
    return
  if process_count is None and cluster and cluster.get_process_count() == 1:
    return
  if missing and cluster is None:
    raise ValueError(
        f'--{missing[0]} is not given, and no cluster (TPU pod, Slurm, Open '
        'MPI, Kubernetes with the package kubernetes) says it. Give '
        '--coordinator_address, --process_count and --process_index, or '
        '--process_count=1 for a process alone.')
  if process_count is not None and process_index is not None and not (
      0 <= process_index < process_count):
    raise ValueError(
        f'--process_index is {process_index}, but --process_count is '
        f'{process_count}; expected 0 to {process_count - 1}.')
  jax.distributed.initialize(
      coordinator_address, process_count, process_index,
      initialization_timeout=300 if timeout is None else timeout)


def _require_no_other_launcher() -> None:
  """Fails if MPI has started several processes that JAX cannot join.

  Each would take itself for the only one, and write to the same folder.
  """
  count = int(os.environ.get('OMPI_COMM_WORLD_SIZE', '1'))
  if count > 1:
    raise ValueError(
        f'MPI has started {count} processes, but this version of it does not '
        'tell JAX where the first one is. Give --coordinator_address=host:port '
        f'of it, --process_count={count} and '
        '--process_index=$OMPI_COMM_WORLD_RANK, or --process_count=1 for '
        'processes that have nothing to do with each other.')


@contextlib.contextmanager
def failing_together(
    describe: Callable[[BaseException], tuple[int, str]]) -> Iterator[None]:
  """Within it, what ends one of several processes ends all of them.

  A process alone is not affected.

  Args:
    describe: from an exception to the exit code and what is to be said.

  Yields:
    Nothing.
  """
  client = distributed.global_state.client
  if client is None:
    yield
    return
  finished = threading.Event()
  watcher = threading.Thread(
      target=_watch, args=(client, finished), name='failures', daemon=True)
  watcher.start()
  stopped = None
  try:
    try:
      yield
    except Stopped as error:
      stopped = error
    # However long the first process takes to write what it alone writes; JAX
    # itself waits five minutes.
    client.wait_at_barrier(_FINISHED, _A_WEEK_MS)
  except (Exception, SystemExit, KeyboardInterrupt) as error:
    finished.set()
    _fail(client, *describe(error))
  finished.set()
  watcher.join()
  if stopped is not None:
    raise stopped


def _watch(client: Any, finished: threading.Event) -> None:
  """Ends this process when another one has failed."""
  while not finished.wait(_LOOK_SECONDS):
    if (failure := _failure(client)) is not None:
      _leave(client, *failure)


def _failure(client: Any) -> tuple[int, str] | None:
  """Exit code and text of the first failure; None for none.

  Where the coordinator is gone, JAX itself ends the process.
  """
  try:
    code, text = json.loads(client.key_value_try_get(_FAILURE))
  except jax.errors.JaxRuntimeError:
    return None
  return code, text


def _fail(client: Any, code: int, text: str) -> None:
  """Tells the others and ends; the first failure is the one that is shown."""
  state = distributed.global_state
  said = f'process {state.process_id} of {state.num_processes}: {text}'
  try:
    client.key_value_set(_FAILURE, json.dumps([code, said]))
  except jax.errors.JaxRuntimeError:
    # Another was first, and this failure only follows from its end; or the
    # coordinator is gone.
    code, said = _failure(client) or (code, said)
  _leave(client, code, said)


def _leave(client: Any, code: int, text: str) -> None:
  """Ends this process without waiting for others to end.

  The first process is the coordinator: it stays until all have seen why.
  """
  sys.stdout.flush()
  sys.stderr.write(f'\n{text}\n')
  sys.stderr.flush()
  state = distributed.global_state
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    client.key_value_set(f'{_SEEN}/{state.process_id}', '')
    patience = time.monotonic() + _PARTING_SECONDS
    while (state.process_id == 0 and time.monotonic() < patience
           and len(client.key_value_dir_get(_SEEN)) < state.num_processes):
      time.sleep(_LOOK_SECONDS / 10)
  os._exit(code)
