"""Two processes that must make equally many forward passes, as with sharded parameters, and have unequal work.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/engine_in_step.py tokens MODEL OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.rollout.attentive import attentive_model
from trl_agentic.rollout.engines import Engine, GenerateEngine, Request, Sample, Sampling, TransformersEngine


EOS, PAD = 2, 0
# Per process: first contexts, tokens a turn, turns. The second process is done early, within turns and with them.
WORK = [([[5, 6, 7], [8, 9], [10, 11, 12, 13]], 9, 5), ([[20, 21]], 3, 3)]


def converse(engine: Engine, rank: int) -> list[list[int]]:
    """Plays a process's rollouts to their end, and continues for as long as the engine has steps."""
    contexts, budget, turns = WORK[rank]
    contexts = [list(ids) for ids in contexts]
    active = len(contexts)

    def ask(rollout: int, turn: int) -> None:
        request = Request(rollout, contexts[rollout], budget, seed=100 * rank + 10 * rollout + turn)
        engine.submit(request, lambda sample: asked.append((rollout, turn, sample)))

    asked: list[tuple[int, int, Sample | Exception]] = []
    for rollout in range(active):
        ask(rollout, 0)
    while (pause := engine.step(active, 0)) is not None:
        assert pause < 1
        while asked:
            rollout, turn, sample = asked.pop()
            assert isinstance(sample, Sample)
            contexts[rollout] = contexts[rollout] + sample.ids + [30 + turn, 40]
            if turn + 1 < turns:
                ask(rollout, turn + 1)
            else:
                active -= 1
    return contexts


def any_process(here: bool) -> bool:
    flag = torch.tensor(float(here))
    dist.all_reduce(flag)
    return bool(flag > 0)


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = attentive_model(sys.argv[2])
    forwards = 0

    def count(*args: Any) -> None:
        nonlocal forwards
        forwards += 1
        dist.barrier()  # as a sharded model would: both are in a forward pass, or neither gets out of it

    hook = model.register_forward_hook(count)
    # Random contexts end a turn at many ids, so that rows end at different lengths.
    ends = [EOS, *range(60, model.config.vocab_size, 6)]
    kind = {"tokens": TransformersEngine, "generate": GenerateEngine}[sys.argv[1]]
    together, in_step = converse(kind(model, ends, PAD, Sampling(), any_active=any_process), rank), forwards
    hook.remove()
    dist.barrier()
    dist.destroy_process_group()
    alone = converse(GenerateEngine(model, ends, PAD, Sampling()), rank)
    saved = {"together": together, "alone": alone, "forwards": in_step}
    torch.save(saved, Path(sys.argv[3]) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
