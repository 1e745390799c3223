"""Inference engines: token ids in, token ids and log-probabilities out.

An engine continues exactly the ids of a request. It does not interpret them as a conversation.
"""

from .base import Done, Engine, LockstepEngine, Request, Sample, Sampling
from .generate import GenerateEngine
from .sampling import SeededSampling
from .transformers import TransformersEngine, transformers_engine
from .vllm_colocate import VLLMColocateEngine
from .vllm_server import VLLMServerEngine


__all__ = [
    "Done",
    "Engine",
    "GenerateEngine",
    "LockstepEngine",
    "Request",
    "Sample",
    "Sampling",
    "SeededSampling",
    "TransformersEngine",
    "VLLMColocateEngine",
    "VLLMServerEngine",
    "transformers_engine",
]
