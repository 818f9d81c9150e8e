"""The engine without anything around it: what the road of a request is measured against.

Runs in Triton's environment, alone:

    .venv-triton/bin/python tests/bench/bare_engine.py ARTIFACT '{"streams": 8, …}'

prints one JSON object. Its streams ask one question after another, as ``load.py``'s do.
"""

import json
import sys
import time
from typing import Any

import openvino_genai as genai


def start(artifact: str, plan: dict[str, Any]) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = plan["cache_gibibytes"]
    scheduler.max_num_batched_tokens = plan["max_batched_tokens"]
    scheduler.max_num_seqs = plan["max_sequences"]
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": plan["threads"]}
    return genai.ContinuousBatchingPipeline(artifact, scheduler, "CPU", properties)


def measure(pipeline: Any, plan: dict[str, Any]) -> dict[str, Any]:
    config = pipeline.get_config()
    config.max_new_tokens = plan["max_tokens"]
    config.do_sample = False
    left = [plan["requests"]] * plan["streams"]
    handles: dict[int, Any] = {}
    asked: dict[int, float] = {}
    first: list[float] = []
    tokens, number = 0, 0
    started = time.perf_counter()
    while any(left) or handles:
        for stream in range(plan["streams"]):
            if stream not in handles and left[stream]:
                left[stream] -= 1
                number += 1
                asked[stream] = time.perf_counter()
                handles[stream] = pipeline.add_request(number, plan["prompt"], config)
        pipeline.step()
        now = time.perf_counter()
        for stream, handle in list(handles.items()):
            while handle.can_read():
                for output in handle.read().values():
                    tokens += len(output.generated_ids)
                    if stream in asked:
                        first.append(now - asked.pop(stream))
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                del handles[stream]
    return {"seconds": time.perf_counter() - started, "tokens": tokens, "first": first}


def main() -> None:
    plan = json.loads(sys.argv[2])
    pipeline = start(sys.argv[1], plan)
    measure(pipeline, {**plan, "requests": 1})  # warm
    print(json.dumps(measure(pipeline, plan)))


if __name__ == "__main__":
    main()
