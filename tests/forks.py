"""A function in a process of its own that can be killed: a fork of this one, which need not import torch again."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


class Fork:
    """A process that carries out a function, whose return value is its exit status."""

    def __init__(self, function: Callable[..., int | None], arguments: tuple, folder: Path, streams: Path) -> None:
        self.output, self.errors = streams / "output", streams / "errors"
        self._process = multiprocessing.get_context("fork").Process(
            target=self._carry_out, args=(function, arguments, folder)
        )
        self._process.start()

    def _carry_out(self, function: Callable[..., int | None], arguments: tuple, folder: Path) -> None:
        # Whoever starts tests in the background lets their children ignore interrupts; a terminal does not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.getLogger("dmqbench").handlers = []  # they write where this process's parent writes
        for number, name, path in ((1, "stdout", self.output), (2, "stderr", self.errors)):
            stream = path.open("w", buffering=1)
            os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
        os.chdir(folder)
        sys.exit(function(*arguments))

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it as nothing can prevent, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = 280) -> tuple[int, str, str]:
        """Wait for its end; return (exit status, standard output, standard error)."""
        self._process.join(seconds)
        status = self.poll()
        assert status is not None, f"it still runs after {seconds} s"
        return status, self.output.read_text(), self.errors.read_text()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None, self.wait()
            assert time.monotonic() < deadline, "it never got that far"
            time.sleep(0.05)


@contextmanager
def forked(function: Callable[..., int | None], *arguments: object, folder: Path) -> Iterator[Fork]:
    """Carry out ``function`` in ``folder`` in a process that does not outlive the block."""
    with TemporaryDirectory() as streams:
        fork = Fork(function, arguments, folder, Path(streams))
        try:
            yield fork
        finally:
            fork.kill()
