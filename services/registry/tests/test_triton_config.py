"""The printed configuration, and the files of a model version."""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from millrace_registry.domain import Serving
from millrace_registry.triton_config import (
    EngineSettings,
    generation_config,
    print_config,
    write_engine,
)


def test_the_printed_configuration_reads_back() -> None:
    config = generation_config("acme.tiny", [3, 4], EngineSettings(threads=2))
    assert text_format.Parse(print_config(config), pb.ModelConfig()) == config


def test_it_is_decoupled_and_serves_exactly_the_versions_named() -> None:
    config = generation_config("acme.tiny", [3, 4], EngineSettings())
    assert config.model_transaction_policy.decoupled
    assert list(config.version_policy.specific.versions) == [3, 4]
    assert config.max_batch_size == 0


def test_either_form_of_prompt_may_be_left_out() -> None:
    inputs = {i.name: i for i in generation_config("m", [1], EngineSettings()).input}
    assert [name for name in inputs if not inputs[name].optional] == ["sampling"]
    assert list(inputs["input_ids"].dims) == [-1]


def test_all_that_the_engine_sends_is_declared() -> None:
    outputs = {output.name for output in generation_config("m", [1], EngineSettings()).output}
    assert {"text", "logprobs", "prompt_logprobs", "timing"} <= outputs


def test_settings_reach_the_engine_as_numbers_in_strings() -> None:
    parameters = generation_config("m", [1], EngineSettings(max_sequences=8)).parameters
    assert int(parameters["max_sequences"].string_value) == 8


def test_a_deployment_says_how_many_engines_and_how_large_their_batch() -> None:
    serving = Serving(instance_count=3, max_batch_size=16, cache_gibibytes=4)
    config = generation_config("m", [1], EngineSettings(threads=2), serving)
    read = text_format.Parse(print_config(config), pb.ModelConfig())
    assert [group.count for group in read.instance_group] == [3]
    assert read.parameters["max_sequences"].string_value == "16"
    assert read.parameters["cache_gibibytes"].string_value == "4"
    assert read.parameters["threads"].string_value == "2"
    # The tensors stay as they are, and nothing waits in Triton.
    assert read.max_batch_size == 0
    assert not read.HasField("dynamic_batching")


def test_what_a_deployment_leaves_open_is_as_the_registry_is_set() -> None:
    settings = EngineSettings(max_sequences=5)
    assert generation_config("m", [1], settings, Serving()) == generation_config("m", [1], settings)


def test_a_version_folder_imports_nothing_but_its_own_files(tmp_path: Path) -> None:
    write_engine(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert "class TritonPythonModel" in written["model.py"]
    assert not [name for name, text in written.items() if "millrace" in text]


def test_python_cannot_change_a_version_folder(tmp_path: Path) -> None:
    write_engine(tmp_path)
    assert (tmp_path / "__pycache__").is_file()
