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
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy


class StopOnSignal(TrainerCallback):
    """Ends training after the optimizer step in which SIGTERM or SIGINT came, with a checkpoint of that step.

    One process that is told stops all of them. A second signal has its usual effect at once.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._stopped_at: int | None = None

    @contextmanager
    def listening(self, args: TrainingArguments) -> Iterator[None]:
        """Hears signals for as long as the block runs. Outside of the main thread, where Python has none, it does not.

        Args:
            args: arguments of the trainer.

        Raises:
            SystemExit: after the block, with code 0, if it was left because of a signal.
        """
        self._received = self._stopped_at = None
        rules = args.save_strategy, args.save_total_limit
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
            args.save_strategy, args.save_total_limit = rules
        if self._stopped_at is not None:
            if PartialState().is_main_process:
                checkpoint = f"{args.output_dir}/checkpoint-{self._stopped_at}"
                print(
                    f"Stopped by a signal after step {self._stopped_at}, which is saved in {checkpoint}. To go on "
                    f"from there, train with the same arguments and resume_from_checkpoint='{checkpoint}'.",
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
            # An evaluation after this step has no say in whether it is saved, and no limit deletes it.
            args.save_total_limit = None
            if args.save_strategy == SaveStrategy.BEST:
                args.save_strategy = SaveStrategy.STEPS
