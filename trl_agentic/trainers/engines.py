"""Engine sources for the arguments of a trainer: transformers, vLLM servers, or vLLM in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_client import VLLMClient

from trl_agentic.rollout.engine_source import EngineSource, TransformersSource, VLLMSource
from trl_agentic.rollout.engines import Sampling, VLLMColocateEngine, VLLMServerEngine
from trl_agentic.rollout.loop import Budgets
from trl_agentic.rollout.weight_sync import ColocateWeightSync, ServerWeightSync
from trl_agentic.trainers.config import AgenticConfig
from trl_agentic.trainers.vllm_preflight import check_served_model, served_models, server_start, server_urls


def context_length(args: AgenticConfig, text_config: Any, vllm_generation: Any | None) -> int:
    """Number of tokens of context: the smallest of the limits of the arguments, the model and vLLM.

    Args:
        args: arguments of the trainer.
        text_config: text configuration of the policy.
        vllm_generation: TRL's `VLLMGeneration`, `None` without vLLM.

    Raises:
        ValueError: there is no limit.
    """
    limits = [args.max_context_length, getattr(text_config, "max_position_embeddings", None)]
    if args.use_vllm and args.vllm_mode == "server":
        limits += [served["max_model_len"] for served in served_models(server_urls(args))]
    elif vllm_generation is not None:
        limits.append(vllm_generation.llm.llm_engine.model_config.max_model_len)
    known = [int(limit) for limit in limits if limit is not None]
    if not known:
        raise ValueError("The model's configuration has no context length: set `max_context_length`.")
    return min(known)


def rollout_budgets(args: AgenticConfig, text_config: Any, vllm_generation: Any | None) -> Budgets:
    """Budgets of a rollout. For arguments and errors, see [`context_length`]."""
    return Budgets(
        max_turns=args.max_turns,
        max_turn_tokens=args.max_turn_tokens,
        max_rollout_tokens=int(args.max_completion_length or 0),
        max_context=context_length(args, text_config, vllm_generation),
        stop_at_overlong_turn=args.overlong_turn == "stop",
    )


def sampling_parameters(args: AgenticConfig, temperature: float) -> Sampling:
    """Sampling parameters of a run at this temperature."""
    return Sampling(temperature, args.top_p, args.top_k, args.min_p, args.repetition_penalty)


def engine_source(
    args: AgenticConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    step: Callable[[], int],
    accelerator: Accelerator,
    unwrapped: Callable[[], AbstractContextManager[Any]],
    is_sharded: bool,
    vllm_generation: Any | None,
    profile: Callable[[str], AbstractContextManager[None]],
) -> EngineSource:
    """Source of engines for the arguments of a trainer; see the functions below for the arguments and errors."""
    if vllm_generation is None:
        return transformers_source(unwrapped, tokenizer, eos_token_ids, step, accelerator, is_sharded)
    if args.vllm_mode == "server":
        return server_source(args, vllm_generation, model, tokenizer, eos_token_ids, step, accelerator, profile)
    return colocate_source(args, vllm_generation, eos_token_ids, step, profile)


def transformers_source(
    unwrapped: Callable[[], AbstractContextManager[Any]],
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    step: Callable[[], int],
    accelerator: Accelerator,
    is_sharded: bool,
) -> TransformersSource:
    """Source of engines that sample with the model that is trained.

    Args:
        tokenizer, eos_token_ids, step, accelerator: as in [`server_source`].
        unwrapped: context with the model, ready for generation.
        is_sharded: whether parameters are sharded, so that processes must sample in step.
    """

    def any_active(here: bool) -> bool:
        flag = torch.tensor(float(here), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum").item() > 0)

    together = any_active if is_sharded and accelerator.num_processes > 1 else None
    return TransformersSource(unwrapped, eos_token_ids, tokenizer.pad_token_id, step, together)


def server_source(
    args: AgenticConfig,
    generation: Any,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: list[int],
    step: Callable[[], int],
    accelerator: Accelerator,
    profile: Callable[[str], AbstractContextManager[None]],
) -> VLLMSource:
    """Source of engines on vLLM servers. Checks what they serve, and joins those that TRL has not joined.

    Args:
        args: arguments of the trainer.
        generation: TRL's `VLLMGeneration`, which has joined the first server.
        model: the policy.
        tokenizer: its tokenizer.
        eos_token_ids: ids that end a turn.
        step: returns the number of the current optimizer step.
        accelerator: the trainer's accelerator.
        profile: context that measures the time of sending weights.

    Raises:
        ValueError: a server has another model or tokenizer.
    """
    urls, name = server_urls(args), model.config._name_or_path
    clients: list[Any] = [None] * len(urls)
    if accelerator.is_main_process:
        check_served_model(urls, args, model.config.get_text_config(), tokenizer, name)
        clients[0] = generation.vllm_client
        for i, url in enumerate(urls[1:], start=1):
            clients[i] = VLLMClient(url, group_port=args.vllm_group_port + i)
            clients[i].init_communicator(device=accelerator.device)
    sync = ServerWeightSync(
        generation,
        urls,
        clients,
        started_at=lambda url: server_start(url, args, name),
        step=step,
        device=accelerator.device,
        barrier=accelerator.wait_for_everyone,
        profile=profile,
    )
    served, timeout = served_models(urls[:1])[0]["id"], args.vllm_server_timeout
    extra = dict(args.generation_kwargs or {})
    if args.vllm_structured_outputs_regex is not None:
        extra["structured_outputs"] = {"regex": args.vllm_structured_outputs_regex}

    def make(sampling: Sampling) -> VLLMServerEngine:
        return VLLMServerEngine(
            urls, served, eos_token_ids, sampling, extra, step(), timeout=timeout, check=sync.check_server
        )

    return VLLMSource(sync, make)


def colocate_source(
    args: AgenticConfig,
    generation: Any,
    eos_token_ids: list[int],
    step: Callable[[], int],
    profile: Callable[[str], AbstractContextManager[None]],
) -> VLLMSource:
    """Source of engines on a vLLM engine in this process. For arguments, see [`server_source`]."""

    def make(sampling: Sampling) -> VLLMColocateEngine:
        extra = dict(args.generation_kwargs or {})
        regex = args.vllm_structured_outputs_regex
        structured = {"regex": regex} if regex is not None else extra.get("structured_outputs")
        if isinstance(structured, dict):
            from vllm.sampling_params import StructuredOutputsParams

            extra["structured_outputs"] = StructuredOutputsParams(**structured)
        group = generation.tp_group if args.vllm_tensor_parallel_size > 1 else None
        return VLLMColocateEngine(generation.llm, eos_token_ids, sampling, extra, step(), group)

    return VLLMSource(ColocateWeightSync(generation, step, args.vllm_enable_sleep_mode, profile), make)
