"""One tuning, in a process of its own: ``python -m tests.bench.tuning_run NAME FOLDER``.

Prints a JSON object: seconds (of the training alone), tokens (of the examples, without padding),
mebibytes (the most that the process held).
"""

import io
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from millrace_data.jobs import instruction_pairs
from millrace_runtime.jobs import Reporter
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec
from millrace_tuner.jobs.examples import Example
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.jobs.supervised_objective import Material, SupervisedObjective
from millrace_tuner.jobs.training import Run
from millrace_tuner.methods import Adapter, Hyperparameters

EXAMPLES, BATCH_SIZE, THREADS = 96, 8, 2
_LONGEST_TOKENS = 768
_RANK, _LEARNING_RATE = 16, 1e-3
_DIGEST = "sha256:" + "0" * 64


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    method, _, trained = name.partition("-")
    torch.set_num_threads(THREADS)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base/model")
    examples = read_examples(tokenizer)
    make = {"millrace": ours, "trainer": plain_trainer, "trl": trl_trainer}[method]
    trainer = make(folder, tokenizer, examples, trained == "lora")
    started = time.perf_counter()
    trainer.train()
    report = {
        "seconds": time.perf_counter() - started,
        "tokens": sum(len(example.token_ids) for example in examples),
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(report), flush=True)


def read_examples(tokenizer: Any) -> list[Example]:
    """Functions of the standard library: the head is given, the body is to be written."""
    made: list[Example] = []
    for path in sorted(Path(json.__file__).parent.parent.glob("*.py")):
        for pair in instruction_pairs.pairs_of(path, Counter()):
            prompt = tokenizer(pair.prompt)["input_ids"]
            ids = np.asarray(prompt + tokenizer(pair.body)["input_ids"], dtype=np.int32)
            if len(prompt) < len(ids) <= _LONGEST_TOKENS:
                made.append(Example(ids, np.arange(len(ids)) >= len(prompt), was_truncated=False))
            if len(made) == EXAMPLES * 4:
                return made[::4]  # from several files
    raise RuntimeError("the standard library has too few functions")


def ours(folder: Path, tokenizer: Any, examples: list[Example], is_lora: bool) -> Trainer:
    output = folder / f"out-{time.time_ns()}"
    output.mkdir()
    spec = Spec(
        job="bench",
        model="bench",
        base_version="bench@1",
        base_checkpoint_path=folder / "base",
        base_checkpoint_digest=_DIGEST,
        training_file_path=folder / "none",
        training_file_sha256=_DIGEST,
        output_directory=output,
        hyperparameters=Hyperparameters(1, BATCH_SIZE, 1.0),
        learning_rate=_LEARNING_RATE,
        adapter=Adapter("lora", rank=_RANK) if is_lora else Adapter("none"),
        threads=THREADS,
    )
    objective = SupervisedObjective(
        ChatCodec(tokenizer, ()), Material(examples, examples[:1], "split", 0, 0)
    )
    run = Run(spec, objective, tokenizer, Reporter(io.StringIO()), Cancellation())
    return run.trainer


def plain_trainer(folder: Path, tokenizer: Any, examples: list[Example], is_lora: bool) -> Trainer:
    model = AutoModelForCausalLM.from_pretrained(folder / "base/model")
    if is_lora:
        model = get_peft_model(model, _lora())
    return Trainer(
        model=model,
        args=TrainingArguments(**_arguments(folder)),
        train_dataset=_columns(examples, "labels"),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


def trl_trainer(folder: Path, tokenizer: Any, examples: list[Example], is_lora: bool) -> Trainer:
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base/model"),
        args=SFTConfig(**_arguments(folder)),
        train_dataset=_columns(examples, "completion_mask"),
        processing_class=tokenizer,
        peft_config=_lora() if is_lora else None,
    )


def _lora() -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear"
    )


def _arguments(folder: Path) -> dict[str, Any]:
    """What all must have in common; the rest is as the libraries have it."""
    return {
        "output_dir": str(folder / "theirs"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": _LEARNING_RATE,
        "save_strategy": "epoch",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }


def _columns(examples: list[Example], mark: str) -> Dataset:
    marks = {
        "labels": [example.labels.tolist() for example in examples],
        "completion_mask": [example.is_learned.astype(int).tolist() for example in examples],
    }
    ids = [example.token_ids.tolist() for example in examples]
    return Dataset.from_dict({"input_ids": ids, mark: marks[mark]})


if __name__ == "__main__":
    main()
