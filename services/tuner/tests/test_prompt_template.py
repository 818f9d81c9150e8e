"""Jobs with a prompt template: what is planned, what is learnt, and that it is what is served."""

import asyncio
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tuner_builders import write_base, write_jsonl
from tuner_parts import Parts

from millrace.data.v1 import prompts_pb2
from millrace.tuner.v1 import prompt_pb2
from millrace.tuner.v1 import service_pb2 as pb
from millrace_data.domain import RequestKey
from millrace_data.prompt_api import PromptServicer
from millrace_data.prompt_store import PromptStore
from millrace_data.prompts import PromptApp
from millrace_data.schema import METADATA
from millrace_examples.kinds import Conversation, Preference, Task
from millrace_examples.prompt_template import canonical_json, normal_template, template_digest
from millrace_gateway.rest.conversation import Conversation as Served
from millrace_gateway.rest.prompt_reference import filled
from millrace_gateway.rest.prompt_versions import PromptVersions
from millrace_gateway.rest.tools import plan
from millrace_gateway.route import Target
from millrace_runtime import manifest
from millrace_runtime.channel import open_channel
from millrace_runtime.database import open_database
from millrace_runtime.errors import InvalidArgument
from millrace_runtime.interceptors import ServiceInterceptor
from millrace_runtime.jobs import JobError, Reporter
from millrace_tuner import convert, rows
from millrace_tuner.jobs import (
    checkpoint,
    examples,
    preference_examples,
    prompts,
    reading,
    supervised,
)
from millrace_tuner.jobs.cancellation import Cancellation
from millrace_tuner.jobs.codec import ChatCodec, load_codec
from millrace_tuner.jobs.specification import Spec
from millrace_tuner.methods import (
    Adapter,
    Classification,
    ContinuedPretraining,
    DirectPreference,
    Hyperparameters,
    KahnemanTversky,
    Reinforcement,
    SequenceToSequence,
    Supervised,
)
from millrace_tuner.neighbours import DataFiles
from millrace_tuner.prompt import Prompt, PromptWish
from millrace_tuner.prompt_rules import PROMPTED

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]

NAME = "tenants/acme/prompts/pmpt-1"
DOCUMENT: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "You repeat {{tone}}."},
        {"role": "user", "content": "Say {{question}}"},
    ],
    "variables": {"tone": {"default": "twice"}},
    "examples": [
        {"input": "Say mill", "output": "\nmill mill"},
        {"messages": [{"role": "assistant", "content": " race\n"}]},
    ],
}


def prompt_of(document: Any = DOCUMENT, **changes: Any) -> Prompt:
    normal = normal_template(document)
    fields = {
        "name": NAME,
        "version": 2,
        "digest": template_digest(normal),
        "template": canonical_json(normal),
    }
    return Prompt(**{**fields, **changes})


PROMPT = prompt_of()


def rows_of(count: int) -> list[dict[str, Any]]:
    words = ("mill", "race", "wheel", "water")
    return [{"question": f"{words[n % 4]} {n}", "answer": f"{words[n % 4]}!"} for n in range(count)]


# Planning


def test_a_plan_keeps_all_that_its_prompt_says(parts: Parts) -> None:
    parts.files.prompts[NAME, 0] = PROMPT
    job = parts.create(prompt=PromptWish(NAME, completion="reply"))
    assert job.plan.prompt == prompt_of(completion="reply")
    assert rows.plan_of(json.loads(rows.PLANS.dump_json(job.plan))) == job.plan
    told = convert.job_to_proto(job).prompt
    assert (told.prompt, told.version, told.completion) == (NAME, 2, "reply")
    assert told.digest == PROMPT.digest
    assert not convert.job_to_proto(parts.create()).HasField("prompt")


def test_a_wish_comes_from_its_message() -> None:
    asked = prompt_pb2.JobPrompt(prompt=NAME, version=3, completion="reply")
    wish = convert.wish_from_proto(pb.CreateJobRequest(prompt=asked))
    assert wish.prompt == PromptWish(NAME, 3, "reply")
    assert convert.wish_from_proto(pb.CreateJobRequest()).prompt is None


@pytest.mark.parametrize(
    ("document", "wish", "field"),
    [
        (DOCUMENT, PromptWish("tenants/acme/prompts/pmpt-2"), "prompt.prompt"),
        (DOCUMENT, PromptWish("tenants/other/prompts/pmpt-1"), "prompt.prompt"),
        (DOCUMENT, PromptWish(NAME, completion="question"), "prompt.completion"),
        ({"messages": DOCUMENT["messages"][:1]}, PromptWish(NAME), "prompt.version"),
    ],
)
def test_a_prompt_that_cannot_be_learnt_from_names_its_field(
    parts: Parts, document: Any, wish: PromptWish, field: str
) -> None:
    parts.files.prompts |= {(NAME, 0): prompt_of(document)}
    with pytest.raises(InvalidArgument) as caught:
        parts.create(prompt=wish)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "method",
    [KahnemanTversky(), Classification(), ContinuedPretraining(), SequenceToSequence()],
)
def test_a_method_that_asks_nothing_takes_no_prompt(parts: Parts, method: Any) -> None:
    assert method.kind not in PROMPTED
    parts.files.prompts[NAME, 0] = PROMPT
    with pytest.raises(InvalidArgument, match=f"method {method.kind}") as caught:
        parts.create(prompt=PromptWish(NAME), method=method)
    assert caught.value.field == "prompt"


@pytest.fixture
def data_files(tmp_path: Path) -> Iterator[tuple[DataFiles, PromptApp]]:
    """The tuner's view of a real prompt service."""
    database = open_database(f"sqlite:///{tmp_path}/data.db")
    METADATA.create_all(database.engine)
    app = PromptApp(PromptStore(database))
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[ServiceInterceptor(None)])
    PromptServicer(app).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = open_channel(f"127.0.0.1:{port}", None)
    yield DataFiles(channel), app
    channel.close()
    server.stop(None).wait()
    database.close()


def test_prompts_are_the_data_services(data_files: tuple[DataFiles, PromptApp]) -> None:
    files, app = data_files
    made, version = app.create("acme", "", json.dumps(DOCUMENT), RequestKey())
    expected = Prompt(made.name, 1, version.digest, version.template)
    assert files.prompt(made.name, 0) == files.prompt(made.name, 1) == expected
    assert version.template == PROMPT.template
    for name, number, field in ((made.name, 2, "version"), (NAME, 0, "prompt")):
        with pytest.raises(InvalidArgument) as caught:
            files.prompt(name, number)
        assert caught.value.field == f"prompt.{field}"


# The job


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder / "base")
    return folder / "base"


def spec_of(base: Path, folder: Path, data: list[dict[str, Any]], **changes: Any) -> Spec:
    _, digest = manifest.read(base)
    fields = {
        "job": "ftjob-1",
        "model": "ft:demo:default::abc123",
        "base_version": "demo@1",
        "base_checkpoint_path": base,
        "base_checkpoint_digest": digest,
        "training_file_path": folder / "train.jsonl",
        "training_file_sha256": write_jsonl(folder / "train.jsonl", data),
        "output_directory": folder / "out",
        "hyperparameters": Hyperparameters(1, 8, 1.0, precision="float32"),
        "learning_rate": 1e-3,
        "adapter": Adapter(rank=4, alpha=8),
        "threads": 1,
        "prompt": asdict(PROMPT),
        **changes,
    }
    return Spec(**fields)


def served_ids(base: Path, variables: Mapping[str, str]) -> list[int]:
    """The ids of what the gateway asks with this prompt and these variables."""

    async def ask(request: Any) -> prompts_pb2.GetPromptVersionResponse:
        version = prompts_pb2.PromptVersion(number=2, template_json=PROMPT.template)
        return prompts_pb2.GetPromptVersionResponse(version=version)

    version = asyncio.run(PromptVersions(ask).get(NAME, 2))
    messages = filled(version.spoken, dict(variables), "prompt.variables")
    tokenizer = load_codec(base / "model").tokenizer
    target = Target(1, 1.0, (), chat_template=str(tokenizer.chat_template))
    text = Served(messages, plan(version.tools, None, None))(target)
    encoder = Tokenizer.from_file(str(base / "model/tokenizer.json"))
    ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="module")
def codec(base: Path) -> ChatCodec:
    return load_codec(base / "model")


TEXT = st.text(st.sampled_from("\n {}ami水<|>"), min_size=1, max_size=8)


@given(TEXT, TEXT)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_learnt_follows_what_is_served(
    base: Path, codec: ChatCodec, tmp_path: Path, question: str, answer: str
) -> None:
    """The same ids, to the last, for every method that reads rows."""
    variables = {"question": question}
    pair = {"answer": answer, "chosen": f"{answer}+", "rejected": f"{answer}-"}
    data = [{**variables, **pair}]
    served = served_ids(base, variables)
    spec = spec_of(base, tmp_path, data)

    (conversation,), _ = reading.files(spec, Conversation)
    example = examples.encode(conversation, codec, 10_000)
    assert example.token_ids[: len(served)].tolist() == served
    assert not example.is_learned[: len(served)].any()
    assert example.is_learned[len(served)]

    (preference,), _ = reading.files(spec, Preference)
    compared = preference_examples.compare(preference, codec, 10_000)
    for one in (compared.preferred, compared.rejected):
        assert one.token_ids[: len(served)].tolist() == served
        assert one.is_learned.tolist().index(True) == len(served)

    (task,), _ = reading.files(spec, Task)
    assert prompts.encode(task, codec).token_ids.tolist() == served
    assert task.item == data[0]


def test_the_checkpoint_says_which_prompt_it_was_taught_with(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, tmp_path, rows_of(20))
    spec.output_directory.mkdir()
    supervised.learn(spec, Reporter(io.StringIO()), Cancellation())
    (committed,) = checkpoint.checkpoints(spec.output_directory, spec.digest)
    assert committed.metadata["config"]["prompt"] == {
        "name": NAME,
        "version": 2,
        "digest": PROMPT.digest,
        "completion": "",
    }
    assert committed.metadata["training_examples"] == 19
    assert (
        committed.metadata["valid"]["valid_loss"] < committed.metadata["base_valid"]["valid_loss"]
    )


def test_another_prompt_is_another_job(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, tmp_path, rows_of(20))
    other = {**DOCUMENT, "examples": []}
    digests = {
        changed.digest
        for changed in (
            spec,
            spec_of(base, tmp_path, rows_of(20), prompt=asdict(prompt_of(other))),
            spec_of(base, tmp_path, rows_of(20), prompt=None),
        )
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("method", "data", "reason", "said"),
    [
        (Supervised(), [{"query": "x", "answer": "y"}], "INVALID_EXAMPLE", "line 1: question"),
        (Supervised(), [{"messages": []}], "WRONG_FORMAT", "`prompt`"),
        (DirectPreference(), rows_of(1), "INVALID_EXAMPLE", "line 1: chosen"),
        (Reinforcement("{}"), [{"query": "x", "n": 1}], "INVALID_EXAMPLE", "line 1: question"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    base: Path, tmp_path: Path, method: Any, data: list[Any], reason: str, said: str
) -> None:
    wanted: Any = {"supervised": Conversation, "dpo": Preference, "reinforcement": Task}
    spec = spec_of(base, tmp_path, data, method=asdict(method))
    with pytest.raises(JobError, match=said) as caught:
        reading.files(spec, wanted[method.kind])
    assert caught.value.reason == reason


def test_without_a_prompt_rows_of_columns_are_refused(base: Path, tmp_path: Path) -> None:
    spec = spec_of(base, tmp_path, rows_of(12), prompt=None)
    with pytest.raises(JobError, match="`prompt`") as caught:
        reading.files(spec, Conversation)
    assert caught.value.reason == "WRONG_FORMAT"
