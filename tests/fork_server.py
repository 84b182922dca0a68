"""Starts Python programs without importing TensorFlow and JAX each time.

    python tests/fork_server.py FD

Everything that the programs import is imported here once, and nothing runs: no
backend, no thread pool. For each request on the socket FD a child is forked,
which does what `python -m MODULE` or `python -c CODE` does: it has its own
process, arguments, environment, folder and files, it can be killed, and it ends
as an interpreter ends. `conftest.Programs` is the other side.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import types
from typing import Any

# The programs themselves are imported for what they import, and forgotten:
# the module that is run is `__main__`.
PROGRAMS = ('t5x.train', 't5x.eval', 't5x.infer', 't5x.main')
OTHERS = ('prompt_tuning.demo.tasks', 'prompt_tuning.train.utils')


def preload() -> None:
  """Imports what programs need."""
  for name in (*PROGRAMS, *OTHERS):
    importlib.import_module(name)
  for name in PROGRAMS:
    package, short = name.rsplit('.', 1)
    del sys.modules[name]
    vars(sys.modules[package]).pop(short, None)
  gc.freeze()  # No child looks for garbage in what it shares.


def serve(server: socket.socket) -> dict[str, Any] | None:
  """Forks for every request, and says when a child has ended.

  Returns:
    In a child, its request; in the server None, when nobody asks any more.
  """
  wake, woken = os.pipe()
  os.set_blocking(woken, False)
  signal.set_wakeup_fd(woken)
  signal.signal(signal.SIGCHLD, lambda *_: None)
  reports: dict[int, int] = {}  # Where to say how a child has ended, by pid.
  while True:
    ready, _, _ = select.select([server, wake], [], [])
    if wake in ready:
      os.read(wake, 512)
      report_ended(reports)
    if server not in ready:
      continue
    message, fds, _, _ = socket.recv_fds(server, 1 << 20, 3)
    if not message:
      for pid in reports:
        os.kill(pid, signal.SIGKILL)
      return None
    *output, report = fds
    pid = os.fork()
    if not pid:
      signal.set_wakeup_fd(-1)
      signal.signal(signal.SIGCHLD, signal.SIG_DFL)
      for number, fd in enumerate(output, start=1):
        os.dup2(fd, number)
      for fd in (*fds, wake, woken, *reports.values()):
        os.close(fd)
      server.close()
      return json.loads(message)
    for fd in output:
      os.close(fd)
    reports[pid] = report
    os.write(report, f'{pid}\n'.encode())


def report_ended(reports: dict[int, int]) -> None:
  """Writes the exit codes of ended children, as `subprocess` spells them."""
  with contextlib.suppress(ChildProcessError):
    while True:
      pid, status = os.waitpid(-1, os.WNOHANG)
      if not pid:
        return
      report = reports.pop(pid)
      with contextlib.suppress(BrokenPipeError):
        os.write(report, f'{os.waitstatus_to_exitcode(status)}\n'.encode())
      os.close(report)


def run(request: dict[str, Any]) -> None:
  """What the interpreter would do with such a command line."""
  flag, program, *arguments = request['command']
  os.environ.clear()
  os.environ.update(request['environment'])
  os.chdir(request['folder'])
  paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
  sys.path[:1] = [request['folder'], *(path for path in paths if path)]
  sys.argv = [program if flag == '-m' else flag, *arguments]
  if flag == '-m':
    runpy.run_module(program, run_name='__main__', alter_sys=True)
  else:
    sys.modules['__main__'] = types.ModuleType('__main__')
    exec(program, vars(sys.modules['__main__']))


if __name__ == '__main__':
  with socket.socket(fileno=int(sys.argv[1])) as asked:
    preload()
    wanted = serve(asked)
  if wanted:
    run(wanted)
