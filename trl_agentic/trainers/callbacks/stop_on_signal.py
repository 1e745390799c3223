"""Graceful shutdown on SIGTERM and SIGINT: a checkpoint is saved, and a message states how to continue."""

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
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class StopOnSignal(TrainerCallback):
    """Callback that ends training after the optimizer step in which SIGTERM or SIGINT arrived, with a checkpoint.

    A signal to one process stops all of them. A second signal has its usual effect at once.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._stopped_at: int | None = None

    @contextmanager
    def listening(self, args: TrainingArguments) -> Iterator[None]:
        """Context in which signals are handled. Outside the main thread, where Python delivers none, it does nothing.

        Args:
            args: arguments of the trainer.

        Raises:
            SystemExit: after the block, with code 0, if it ended because of a signal.
        """
        self._received = self._stopped_at = None
        saving = args.save_strategy, args.save_total_limit
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
            args.save_strategy, args.save_total_limit = saving
        if self._stopped_at is not None:
            if PartialState().is_main_process:
                checkpoint = f"{args.output_dir}/checkpoint-{self._stopped_at}"
                print(
                    f"Stopped by a signal after step {self._stopped_at}, which is saved in {checkpoint}. To "
                    f"continue from there, train with the same arguments and resume_from_checkpoint='{checkpoint}'.",
                    file=sys.stderr,
                    flush=True,
                )
            raise SystemExit(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops all processes if one has received a signal."""
        received = torch.tensor(float(self._received is not None), device=PartialState().device)
        if reduce(received, reduction="sum").item() > 0:
            control.should_save = control.should_training_stop = True
            self._stopped_at = state.global_step
            # The checkpoint is saved whatever an evaluation after this step says, and no limit deletes it.
            args.save_total_limit = None
            if args.save_strategy == SaveStrategy.BEST:
                args.save_strategy = SaveStrategy.STEPS
