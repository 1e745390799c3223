"""Trains an agent on WebShop with A2TGPO, which goes beyond the paper: the ground truth is the wanted product.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml recipes/webshop_a2tgpo.py \
        --config recipes/configs/webshop_a2tgpo/qwen2.5-1.5b.yaml --data_dir $WEBSHOP_DATA

Everything except the algorithm is as in `webshop_gagpo.py`.
"""

from __future__ import annotations

from trl import ModelConfig, TrlParser
from webshop_gagpo import WebShopArguments, main

from trl_agentic import A2TGPOConfig, A2TGPOTrainer


if __name__ == "__main__":
    parser = TrlParser((WebShopArguments, A2TGPOConfig, ModelConfig))
    main(*parser.parse_args_and_config(), trainer_class=A2TGPOTrainer)
