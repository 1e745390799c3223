"""Two processes that must make equally many forward passes, as with sharded parameters, and have unequal work.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/engine_in_step.py MODEL OUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.rollout.attentive import attentive_model
from trl_agentic.rollout.engines import Request, Sampling, TransformersEngine


EOS, PAD = 2, 0
# Per process: first contexts, tokens a turn, turns. The second process is done early, within turns and with them.
WORK = [([[5, 6, 7], [8, 9], [10, 11, 12, 13]], 9, 5), ([[20, 21]], 3, 3)]


def converse(engine: TransformersEngine, rank: int, turns: int) -> list[list[int]]:
    contexts, budget, played = WORK[rank]
    contexts = [list(ids) for ids in contexts]
    for turn in range(turns):
        requests = [Request(i, ids, budget, seed=100 * rank + 10 * i + turn) for i, ids in enumerate(contexts)]
        samples = engine.generate(requests if turn < played else [])
        if turn < played:
            contexts = [ids + sample.ids + [30 + turn, 40] for ids, sample in zip(contexts, samples, strict=True)]
        else:
            assert samples == []
    return contexts


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = attentive_model(sys.argv[1])
    forwards = 0

    def count(*args: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = model.register_forward_hook(count)
    # Random contexts end a turn at many ids, so that rows end at different lengths.
    ends = [EOS, *range(60, model.config.vocab_size, 6)]
    synced = TransformersEngine(model, ends, PAD, Sampling(), any_active=bool, min_useful_cache=0.0)
    together, in_step = converse(synced, rank, turns=5), forwards
    hook.remove()
    dist.barrier()
    dist.destroy_process_group()
    alone = converse(TransformersEngine(model, ends, PAD, Sampling(), keep_cache=False), rank, turns=WORK[rank][2])
    saved = {"together": together, "alone": alone, "forwards": in_step}
    torch.save(saved, Path(sys.argv[2]) / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
