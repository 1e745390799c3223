"""Workers of environments: a thread of the trainer's process, or a separate process.

A worker makes one environment and plays it. After any failure (an error, a timeout, the death of its process) the
worker is discarded, and its owner starts another one ([`~trl_agentic.environments.handle.EnvironmentHandle`]).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, NoReturn, Protocol

from trl_agentic.environments.base import Environment


logger = logging.getLogger(__name__)

_START_ALLOWANCE = 10  # construction may take this many timeouts: it imports libraries and reads catalogues
_CLOSE_SECONDS = 5.0
# A fork server imports the main script once, and a worker then starts in milliseconds; with spawn, each imports it.
_CONTEXT: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
_START = threading.Lock()


class EnvironmentFailed(RuntimeError):
    """An environment raised an error in its worker process. The message holds the traceback."""


class EnvironmentTimeout(EnvironmentFailed):
    """An environment did not answer in time."""


class WorkerDied(EnvironmentFailed):
    """The process of an environment ended: it crashed or was killed."""


class Worker(Protocol):
    """Holds one environment."""

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the environment and returns its result, or raises its error."""
        ...

    def close(self) -> None:
        """Closes the environment and ends the worker, in any state. Raises nothing."""
        ...


class ThreadCall:
    """Call that the thread of an environment runs and other threads wait for.

    Args:
        name: name of the call in errors.
        work: called in the thread.
    """

    def __init__(self, name: str, work: Callable[[], Any]):
        self.name = name
        self._work = work
        self._value: Any = None
        self.error: BaseException | None = None
        """Its error, once it is over."""
        self._under_way = threading.Lock()
        self._under_way.acquire()

    def run(self) -> None:
        """Runs the call. Raises nothing: `sys.exit` in an environment must not end the trainer."""
        try:
            self._value = self._work()
        except BaseException as error:
            self.error = error
        finally:
            self._under_way.release()

    def is_over(self, seconds: float | None) -> bool:
        """Whether it is over after at most this many seconds; `None` waits without a limit."""
        if not self._under_way.acquire(timeout=-1 if seconds is None else seconds):
            return False
        self._under_way.release()
        return True

    def answer(self) -> Any:
        """Returns its result or raises its error. It must be over."""
        if self.error is None:
            return self._value
        if isinstance(self.error, Exception):
            raise self.error
        raise EnvironmentFailed(f"The environment raised {self.error!r} in {self.name}.") from self.error


class ThreadWorker:
    """Worker that makes, plays and closes an environment in one thread.

    A thread cannot be killed. A thread that hangs is abandoned together with its environment.

    Args:
        factory: makes the environment.
        timeout: seconds that a call may take; `None` for no limit.

    Raises:
        EnvironmentTimeout: the environment was not made in time.
        Exception: the error of `factory`.
    """

    def __init__(self, factory: Callable[[], Environment], timeout: float | None = None):
        self._factory = factory
        self._timeout = timeout
        self._calls: SimpleQueue[ThreadCall | None] = SimpleQueue()
        self._hangs = self._closed = False
        self.instance: Any = None
        threading.Thread(target=self._serve, name="environment", daemon=True).start()
        try:
            self.end(self._begin("", self._make), _START_ALLOWANCE)
        except Exception:
            self.close()
            raise

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """See [`Worker`]."""
        return self.end(self.begin(method, *args, **kwargs))

    def begin(self, method: str, /, *args: Any, **kwargs: Any) -> ThreadCall:
        """Starts a call of a method of the environment in the thread. [`end`] must follow."""
        return self._begin(method, lambda: getattr(self.instance, method)(*args, **kwargs))

    def end(self, call: ThreadCall, allowance: int = 1) -> Any:
        """Returns the result of the method or raises its error. It may take `allowance` timeouts."""
        seconds = None if self._timeout is None else self._timeout * allowance
        if not call.is_over(seconds):
            self._hangs = True
            raise EnvironmentTimeout(_too_long(call.name, seconds, "Its thread is abandoned."))
        return call.answer()

    def _begin(self, method: str, work: Callable[[], Any]) -> ThreadCall:
        call = ThreadCall(_named(method), work)
        self._calls.put(call)
        return call

    def close(self) -> None:
        """See [`Worker`]. An environment that hangs is closed by its thread if that ever continues."""
        if self._closed:
            return
        self._closed = True
        if callable(getattr(self.instance, "close", None)):
            closing = self.begin("close")
            if not self._hangs:
                if not closing.is_over(_CLOSE_SECONDS):
                    logger.warning("An environment did not close in %g s. Its thread is abandoned.", _CLOSE_SECONDS)
                elif closing.error is not None:
                    logger.warning("An environment could not be closed: %r", closing.error)
        self._calls.put(None)

    def _make(self) -> None:
        self.instance = self._factory()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
            del call  # its result is not kept until the next call


class ProcessWorker:
    """Worker that plays an environment in a separate process, which is killed if it hangs and whose death is noticed.

    Args:
        factory: makes the environment; sent to the process by its name, so a function or class of a module.
        timeout: seconds that a call may take; `None` for no limit.

    Raises:
        EnvironmentFailed: the environment could not be made.
        TypeError: `factory` cannot be sent to another process.
    """

    instance = None  # the environment is in the other process

    def __init__(self, factory: Callable[[], Environment], timeout: float | None = None):
        self._timeout = timeout
        self._pipe, far_end = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve, args=(far_end, _pickled(factory)), name="environment", daemon=True
        )
        try:
            with _START:
                self._process.start()
        except (EOFError, OSError, RuntimeError) as error:
            raise EnvironmentFailed(
                "A process for an environment could not be started. A script that trains must do so under "
                '`if __name__ == "__main__":`, since worker processes import it.'
            ) from error
        finally:
            far_end.close()
        try:
            self._answer("", _START_ALLOWANCE)
        except Exception:
            self._kill()
            raise

    @property
    def pid(self) -> int | None:
        """Number of the process."""
        return self._process.pid

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """See [`Worker`]."""
        with contextlib.suppress(BrokenPipeError):  # `_answer` reports that it died
            self._pipe.send((method, args, kwargs))
        return self._answer(method, 1)

    def close(self) -> None:
        """See [`Worker`]."""
        if self._pipe.closed:
            return
        try:
            self._timeout = min(self._timeout or _CLOSE_SECONDS, _CLOSE_SECONDS)
            self.call("close")
        except Exception as error:
            logger.warning("An environment was not closed before its process was ended: %s", error)
        self._kill()

    def _answer(self, method: str, allowance: int) -> Any:
        seconds = None if self._timeout is None else self._timeout * allowance
        try:
            if not self._pipe.poll(seconds):
                self._kill()
                raise EnvironmentTimeout(_too_long(_named(method), seconds, "Its process was killed."))
            done, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(_CLOSE_SECONDS)
            code = self._process.exitcode
            self._kill()
            raise WorkerDied(f"The process of an environment ended in {_named(method)} ({_cause(code)}).") from None
        if not done:
            raise EnvironmentFailed(f"An environment failed in its process:\n{value}")
        return value

    def _kill(self) -> None:
        """Ends the process and the processes that it started, which may outlive it."""
        self._pipe.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (AttributeError, OSError):  # no process groups on this system, no process left, or no group yet
            self._process.kill()
        self._process.join()


def _pickled(factory: Callable[[], Environment]) -> bytes:
    try:
        return pickle.dumps(factory)
    except Exception as error:
        raise TypeError(
            f"`environment_factory` {factory!r} cannot be sent to another process ({error}). Define it at the top of "
            "a module (a class, a function, or `functools.partial` of one), or set `environment_workers='thread'`."
        ) from error


def _serve(pipe: Connection, factory: bytes) -> None:
    """Main function of the process: makes the environment, then serves calls until the other end is closed."""
    with contextlib.suppress(AttributeError, OSError):
        os.setsid()  # a separate process group, which can be killed as a whole and does not get Ctrl-C
    threading.Thread(target=_die_with_parent, daemon=True).start()
    environment: Any = None
    method: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    while True:
        try:
            if method:
                value = getattr(environment, method)(*args, **kwargs)
            else:
                environment = pickle.loads(factory)()
                value = None
            answer = pickle.dumps((True, value))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        try:
            pipe.send_bytes(answer)
            method, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            _end()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _end()


def _end() -> NoReturn:
    """Ends this process and the processes that it started, since the trainer is gone."""
    with contextlib.suppress(AttributeError, OSError):
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _named(method: str) -> str:
    return f"`{method}`" if method else "the factory"


def _too_long(name: str, seconds: float | None, outcome: str) -> str:
    return (
        f"The environment did not answer within {seconds:g} s in {name}. {outcome} `environment_timeout` "
        "sets the limit."
    )


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
