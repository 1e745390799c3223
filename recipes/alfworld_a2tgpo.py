"""Trains an agent on ALFWorld with A2TGPO, which goes beyond the paper: the ground truth is the expert's plan.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/alfworld_a2tgpo.py \
        --config recipes/configs/alfworld_a2tgpo/qwen2.5-1.5b.yaml --data $ALFWORLD_DATA

Everything except the algorithm is as in `alfworld_gagpo.py`.
"""

from __future__ import annotations

from alfworld_gagpo import ALFWorldArguments, main
from trl import ModelConfig, TrlParser

from trl_agentic import A2TGPOConfig, A2TGPOTrainer


if __name__ == "__main__":
    parser = TrlParser((ALFWorldArguments, A2TGPOConfig, ModelConfig))
    main(*parser.parse_args_and_config(), trainer_class=A2TGPOTrainer, expose_plan=True)
