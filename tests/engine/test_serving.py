"""How a deployment says that a model is to be run, on a real tritonserver."""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.domain import Serving
from tests.engine.served import ServedEngine, is_installed

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not is_installed(), reason="deploy/local/setup.sh has not run"),
    pytest.mark.filterwarnings("ignore"),  # what tracing a model says is not ours
]
WIDE = "default.wide"
PROMPTS = ("import os", "class A:", "def read(", "with open", "for x in", "return")


@pytest.fixture
def wide(engine: ServedEngine) -> Iterator[ServedEngine]:
    """A second model of the same artifact: two engines, each with two sequences at once."""
    engine.load(WIDE, Serving(instance_count=2, max_batch_size=2))
    yield engine
    engine.unload(WIDE)


def config(engine: ServedEngine) -> pb.ModelConfig:
    """As Triton itself tells it."""
    with triton.InferenceServerClient(engine.address) as client:
        found: pb.ModelConfig = client.get_model_config(WIDE).config
    return found


def engines_and_batch(engine: ServedEngine) -> tuple[int, int]:
    found = config(engine)
    return found.instance_group[0].count, int(found.parameters["max_sequences"].string_value)


def test_triton_runs_a_model_as_its_deployment_says(wide: ServedEngine) -> None:
    assert engines_and_batch(wide) == (2, 2)
    assert not config(wide).HasField("dynamic_batching")
    # More at once than both engines together compute: each answer is what it would be alone.
    asked = [wide.begin(prompt, WIDE, max_tokens=12, temperature=0) for prompt in PROMPTS]
    answers = [one.answer() for one in asked]
    for one in asked:
        one.close()
    assert [answer.error for answer in answers] == [""] * len(PROMPTS)
    alone = [wide.ask(prompt, max_tokens=12, temperature=0) for prompt in PROMPTS]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]


def test_a_change_is_loaded_while_an_answer_goes_on(wide: ServedEngine) -> None:
    going_on = wide.begin("import", WIDE, max_tokens=200, temperature=0, ignore_eos=True)
    going_on.next()
    wide.load(WIDE, Serving(max_batch_size=4))
    assert engines_and_batch(wide) == (1, 4)
    answer = going_on.answer()
    going_on.close()
    assert (answer.error, answer.finish_reason) == ("", "length")
    assert wide.ask("import", WIDE, max_tokens=4).error == ""
