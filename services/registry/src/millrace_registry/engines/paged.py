"""A Hugging Face checkpoint that generates for many requests at once, with transformers' parts.

What continuous batching needs is transformers' own: the paged cache, the scheduler, and the
processor that makes one batch of what is to be computed next. Only the loop around them is not.
``ContinuousBatchingManager`` has one for all requests' sampling, and spins while there is nothing
to do: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/generation/continuous_batching/continuous_api.py

Free of imports from this package, because the file is copied beside ``model.py`` into the Triton
repository.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation.continuous_batching import FIFOScheduler, PagedAttentionCache
from transformers.generation.continuous_batching import cache as transformers_cache
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchProcessor
from transformers.generation.continuous_batching.requests import RequestState

ATTENTION = "paged|sdpa"  # runs anywhere; the flash kernels do not
BLOCK_TOKENS = 32
# The requests end when the engine says so, and never by themselves.
NEVER = 2**31

Choose = Callable[[Sequence[str], torch.Tensor], Sequence[int]]


class PagedBatch:
    """The model, its cache and the requests in it. For one thread.

    ``capacity_tokens`` is what the cache has room for; ``end_tokens`` end an answer, the checkpoint
    says; ``vocabulary_size`` is the number of logits.
    """

    def __init__(
        self, artifact: Path, cache_bytes: int, most_cached_tokens: int, batch_tokens: int
    ) -> None:
        self._model = load(artifact)
        self.end_tokens = _end_tokens(self._model.generation_config)
        self.vocabulary_size = int(self._model.config.vocab_size)
        blocks = _blocks(self._model, cache_bytes, most_cached_tokens, batch_tokens)
        # A generation config would carry these as attributes, which are none of its own.
        sizes: Any = SimpleNamespace(
            block_size=BLOCK_TOKENS, num_blocks=blocks, max_batch_tokens=batch_tokens
        )
        cache = _cache(self._model, sizes)
        # The last block's end is kept free: a request that asks for one token more than there are
        # ends the loop of everybody.
        self.capacity_tokens = (cache.num_blocks // cache.num_groups - 2) * BLOCK_TOKENS
        self._waiting: queue.Queue[RequestState] = queue.Queue()
        self._scheduler = FIFOScheduler(cache)
        self._processor = ContinuousBatchProcessor(
            cache=cache,
            config=self._model.config,
            generation_config=sizes,
            input_queue=self._waiting,
            output_queue=queue.Queue(),
            stop_event=threading.Event(),
            model_device=self._model.device,
            model_dtype=self._model.dtype,
            scheduler=self._scheduler,
            manual_eviction=False,
            use_cuda_graph=False,
            q_padding_intervals=0,
            kv_padding_intervals=0,
        )

    def add(self, name: str, prompt: Sequence[int]) -> None:
        """Begin a request; it goes on until ``end``."""
        tokens = list(prompt)
        self._waiting.put(
            RequestState(
                request_id=name,
                initial_tokens=tokens,
                tokens_to_process=list(tokens),
                max_new_tokens=NEVER,
            )
        )

    def end(self, name: str) -> None:
        """Take a request out, before the next step."""
        self._scheduler.set_request_cancellation(name)
        # Set when one was put back for want of room, and cleared by what ends by itself only.
        self._scheduler.block_new_requests = False

    @torch.inference_mode()
    def step(self, choose: Choose) -> None:
        """Compute what is next, for as many requests as fit.

        ``choose`` is given the names of the requests that are to have a token now, none of them
        twice, and their logits, float32, (names, vocabulary); it returns the tokens. Not called
        while there are only parts of prompts to compute.
        """
        processor = self._processor
        if not processor.prepare_next_batch():
            return
        batch = processor.requests_in_batch
        ready = [state.request_id for state in batch if not state.remaining_prefill_tokens]
        rows = processor.logits_indices[: len(ready)].long()
        arguments: Any = processor.get_model_kwargs()
        logits = self._model(**arguments, logits_to_keep=rows).logits[0]
        if ready:
            tokens = choose(ready, logits.float())
            processor.output_ids[rows] = torch.tensor(tokens, dtype=torch.int32).to(logits.device)
        processor.update_batch()


def load(artifact: Path) -> Any:
    """The model on the GPU when there is one, in the checkpoint's own precision.

    Raises:
        OSError, ValueError: it is no checkpoint that transformers itself knows; code that comes
            with a checkpoint is never run, nor is a pickle read.
    """
    log: Any = transformers.utils.logging
    log.disable_progress_bar()  # it would go to Triton's log
    model: Any = AutoModelForCausalLM.from_pretrained(
        artifact,
        dtype="auto",
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.set_attn_implementation(ATTENTION)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _cache(model: Any, sizes: Any) -> PagedAttentionCache:
    """The paged cache.

    Blocks are not shared between requests: transformers finds the block to share by a hash that
    can be made to collide, so that one tenant's answer could be made from another's prompt.
    """
    if model.device.type == "cpu":
        # 5.0.0 subtracts from the memory of the CPU, which it does not know; mended since:
        # https://github.com/huggingface/transformers/pull/42869
        handler: Any = transformers_cache.PagedAttentionMemoryHandler
        handler.get_available_memory = staticmethod(lambda share=1.0: 2**63)
    return PagedAttentionCache(
        model.config, sizes, model.device, model.dtype, allow_block_sharing=False
    )


def _blocks(model: Any, cache_bytes: int, most_tokens: int, batch_tokens: int) -> int:
    """Blocks that ``cache_bytes`` hold, and no more than ``most_tokens`` need.

    A cached token takes a key and a value in each layer, and a column of the attention mask.
    """
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * heads * size + batch_tokens
    tokens = min(cache_bytes // (numbers * model.dtype.itemsize), most_tokens)
    return int(tokens) // BLOCK_TOKENS + 2


def _end_tokens(config: Any) -> frozenset[int]:
    given = config.eos_token_id
    if given is None:
        return frozenset()
    return frozenset([given] if isinstance(given, int) else given)
