import json
from pathlib import Path

import pytest

from millrace_client.endpoint import Endpoint, resolve
from millrace_client.errors import NoGateway
from millrace_client.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home where a mesh runs at port 8080."""
    made = Home(tmp_path)
    made.state_file.write_text(json.dumps({"gateway_url": "http://127.0.0.1:8080"}))
    made.operator_key_file.parent.mkdir()
    made.operator_key_file.write_text("sk-mr-operator\n")
    return made


LOCAL = Endpoint("http://127.0.0.1:8080", "sk-mr-operator")


def test_the_mesh_of_the_home_is_the_default(home: Home):
    assert resolve({}, home) == LOCAL


@pytest.mark.parametrize("variable", ["MILLRACE_BASE_URL", "OPENAI_BASE_URL"])
def test_the_environment_names_another(home: Home, variable: str):
    environ = {variable: "https://mesh.example/v1/", "OPENAI_API_KEY": "sk-mr-mine"}
    assert resolve(environ, home) == Endpoint("https://mesh.example", "sk-mr-mine")


def test_millraces_own_variable_comes_first(home: Home):
    environ = {
        "MILLRACE_BASE_URL": "http://one",
        "OPENAI_BASE_URL": "http://other/v1",
        "OPENAI_API_KEY": "k",
    }
    assert resolve(environ, home).base_url == "http://one"


def test_a_key_for_somebody_else_is_not_sent_to_the_local_mesh(home: Home):
    assert resolve({"OPENAI_API_KEY": "sk-of-another-provider"}, home) == LOCAL


def test_the_operators_key_is_not_sent_elsewhere(home: Home):
    with pytest.raises(NoGateway, match="OPENAI_API_KEY is not set"):
        resolve({"MILLRACE_BASE_URL": "https://mesh.example"}, home)


def test_naming_the_local_mesh_without_a_key_uses_its_operators(home: Home):
    assert resolve({"MILLRACE_BASE_URL": "http://127.0.0.1:8080/v1"}, home) == LOCAL


def test_without_any_mesh_the_error_says_how_to_start_one(tmp_path: Path):
    with pytest.raises(NoGateway, match="millrace up --detach"):
        resolve({}, Home(tmp_path))


def test_the_path_for_openai_clients():
    assert LOCAL.openai_base_url == "http://127.0.0.1:8080/v1"
