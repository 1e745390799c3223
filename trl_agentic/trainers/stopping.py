"""A run that is told to stop: it saves a checkpoint and ends, and says how to go on."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Ends training after the optimizer step in which SIGTERM or SIGINT came, with a checkpoint of that step.

    One process that is told stops all of them. A second signal has its usual effect at once.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._stopped_at: int | None = None

    @contextmanager
    def listening(self, output_dir: str) -> Iterator[None]:
        """Hears signals for as long as the block runs. Outside of the main thread, where Python has none, it does not.

        Args:
            output_dir: where the checkpoints are.

        Raises:
            SystemExit: after the block, with code 0, if it was left because of a signal.
        """
        self._received = self._stopped_at = None
        before: dict[signal.Signals, Any] = {}

        def receive(number: int, frame: Any) -> None:
            self._received = signal.Signals(number)
            print(f"{self._received.name}: stopping after this step.", file=sys.stderr, flush=True)
            restore()

        def restore() -> None:
            while before:
                signal.signal(*before.popitem())

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, receive)
        try:
            yield
        finally:
            restore()
        if self._stopped_at is not None:
            if PartialState().is_main_process:
                print(
                    f"Stopped by a signal after step {self._stopped_at}, which is saved in {output_dir}/"
                    f"checkpoint-{self._stopped_at}. To go on from there, train with the same arguments and "
                    f"resume_from_checkpoint='{output_dir}/checkpoint-{self._stopped_at}'.",
                    file=sys.stderr,
                    flush=True,
                )
            raise SystemExit(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks all processes, and stops if one was told to."""
        told = torch.tensor(float(self._received is not None), device=PartialState().device)
        if reduce(told, reduction="sum").item() > 0:
            control.should_save = control.should_training_stop = True
            self._stopped_at = state.global_step
