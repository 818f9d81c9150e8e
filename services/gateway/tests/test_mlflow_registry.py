"""MLflow's own client against the gateway's ``/mlflow``: the registry's part."""

import pytest
from gateway_mesh import Mesh
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from millrace.registry.v1 import service_pb2 as pb


@pytest.fixture
def client(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Of the default tenant, whose ``demo`` has two versions; others have models too."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", mesh.member_secret)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = mesh.registry
    registry.add_model("default", "demo", aliases={"champion": 2, "first": 1})
    registry.add_model("default", "ft:demo:default:sums:x", base_model="demo", tags={"team": "a"})
    registry.add_model("default", "other", tags={"team": "b"})
    registry.add_model("acme", "secret")
    registry.add_version("default", 1).state = pb.VERSION_STATE_RETIRED
    registry.add_version("default", 2)
    registry.add_version("default", 1, "other")
    registry.add_version("acme", 1, "secret")
    uri = f"{mesh.url}/mlflow"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def names(found: list[object]) -> list[str]:
    return [model.name for model in found]


def test_a_model_is_as_the_registry_has_it(client: MlflowClient) -> None:
    model = client.get_registered_model("demo")
    assert model.aliases == {"champion": "2", "first": "1"}
    assert [version.version for version in model.latest_versions] == ["2"]
    assert model.creation_timestamp == 1_700_000_000_000
    tuned = client.get_registered_model("ft:demo:default:sums:x")
    assert tuned.tags == {"team": "a", "millrace.base_model": "demo"}


def test_models_are_searched_sorted_and_read_by_pages(client: MlflowClient) -> None:
    search = client.search_registered_models
    assert names(search()) == ["demo", "ft:demo:default:sums:x", "other"]
    assert names(search("name LIKE 'ft:%'")) == ["ft:demo:default:sums:x"]
    assert names(search("name ILIKE 'DE_O'")) == ["demo"]
    assert names(search("name != 'demo' AND tags.team = 'b'")) == ["other"]
    assert names(search(order_by=["name DESC"])) == ["other", "ft:demo:default:sums:x", "demo"]
    first = search(max_results=2)
    assert names(first) == ["demo", "ft:demo:default:sums:x"]
    second = search(max_results=2, page_token=first.token)
    assert names(second) == ["other"]
    assert not second.token


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ("name ~ 'a'", "a comparison is expected"),
        ("name = 'a' OR name = 'b'", "AND is expected"),
        ("stage = 'a'", "cannot be searched by"),
        ("name = 'a' AND", "a comparison is expected"),
        ("name > 'a'", "compares numbers"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(
    client: MlflowClient, filter: str, said: str
) -> None:
    with pytest.raises(MlflowException, match=said) as refused:
        client.search_registered_models(filter)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_versions_are_read_and_searched(client: MlflowClient) -> None:
    version = client.get_model_version("demo", "2")
    assert (version.version, version.status, version.aliases) == ("2", "READY", ["champion"])
    assert version.tags["millrace.state"] == "serving"
    assert version.tags["millrace.target"] == "openvino_int8"
    assert client.get_model_version_download_uri("demo", "2") == "mlflow-artifacts:/models/demo/2"
    with pytest.warns(FutureWarning, match="deprecated"):
        assert client.get_latest_versions("demo")[0].version == "2"
    found = client.search_model_versions("name='demo'")
    assert [one.version for one in found] == ["2", "1"]
    assert len(client.search_model_versions()) == 3
    older = client.search_model_versions("name IN ('demo', 'other') AND version_number < 2")
    assert sorted(one.name for one in older) == ["demo", "other"]
    retired = client.search_model_versions("tags.`millrace.state` = 'retired'")
    assert [(one.name, one.version) for one in retired] == [("demo", "1")]


def test_a_quarantined_version_is_not_ready(mesh: Mesh, client: MlflowClient) -> None:
    version = mesh.registry.versions["tenants/default/models/demo/versions/1"]
    version.state, version.state_reason = pb.VERSION_STATE_QUARANTINED, "it is wrong"
    found = client.get_model_version("demo", "1")
    assert (found.status, found.status_message) == ("FAILED_REGISTRATION", "it is wrong")


def test_aliases_are_set_read_and_deleted(client: MlflowClient) -> None:
    client.set_registered_model_alias("demo", "challenger", "1")
    assert client.get_model_version_by_alias("demo", "challenger").version == "1"
    client.delete_registered_model_alias("demo", "challenger")
    with pytest.raises(MlflowException, match="alias challenger not found"):
        client.get_model_version_by_alias("demo", "challenger")


def test_to_set_champion_is_to_ask_for_a_rollout(mesh: Mesh, client: MlflowClient) -> None:
    client.set_registered_model_alias("demo", "champion", "1")
    (asked,) = mesh.registry.rolled_out
    assert (asked.parent, asked.model, asked.version) == ("tenants/default", "demo", 1)
    # Until it has settled the alias stays where it is.
    assert client.get_registered_model("demo").aliases["champion"] == "2"
    client.set_registered_model_alias("demo", "champion", "2")  # it serves: nothing to do
    assert len(mesh.registry.rolled_out) == 1
    mesh.registry.versions[
        "tenants/default/models/demo/versions/1"
    ].state = pb.VERSION_STATE_QUARANTINED
    with pytest.raises(MlflowException, match="it is wrong"):
        client.set_registered_model_alias("demo", "champion", "1")


def test_tags_and_descriptions_are_kept(client: MlflowClient) -> None:
    client.set_registered_model_tag("demo", "team", "a")
    client.set_model_version_tag("demo", "1", "checked", "yes")
    client.update_registered_model("demo", "what it is for")
    described = client.update_model_version("demo", "1", "the first")
    assert client.get_registered_model("demo").tags["team"] == "a"
    assert client.get_registered_model("demo").description == "what it is for"
    assert (described.tags["checked"], described.description) == ("yes", "the first")
    client.delete_registered_model_tag("demo", "team")
    client.delete_model_version_tag("demo", "1", "checked")
    assert "team" not in client.get_registered_model("demo").tags
    assert "checked" not in client.get_model_version("demo", "1").tags
    with pytest.raises(MlflowException, match="the mesh's own"):
        client.set_model_version_tag("demo", "1", "millrace.state", "serving")


def test_what_comes_from_checkpoints_alone_is_refused(client: MlflowClient) -> None:
    with pytest.raises(MlflowException, match="models come from checkpoints") as refused:
        client.create_registered_model("new")
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException) as there:
        client.create_registered_model("demo")
    assert there.value.error_code == "RESOURCE_ALREADY_EXISTS"
    with pytest.raises(MlflowException, match="versions come from checkpoints"):
        client.create_model_version("demo", "file:///x")
    with pytest.raises(MlflowException, match="keeps its name"):
        client.rename_registered_model("demo", "new")
    with pytest.raises(MlflowException, match="quarantine"):
        client.delete_model_version("demo", "1")
    with (
        pytest.warns(FutureWarning, match="deprecated"),
        pytest.raises(MlflowException, match="aliases"),
    ):
        client.transition_model_version_stage("demo", "1", "Production")


def test_a_model_is_deleted(mesh: Mesh, client: MlflowClient) -> None:
    client.delete_registered_model("demo")
    assert mesh.registry.deleted[-1] == "tenants/default/models/demo"


def test_what_is_not_there_or_anothers_does_not_exist(client: MlflowClient) -> None:
    for ask in (
        lambda: client.get_registered_model("secret"),
        lambda: client.get_registered_model("no such thing"),
        lambda: client.get_model_version("secret", "1"),
        lambda: client.get_model_version("demo", "9"),
        lambda: client.set_registered_model_tag("secret", "team", "a"),
        lambda: client.set_registered_model_alias("secret", "champion", "1"),
    ):
        with pytest.raises(MlflowException) as refused:
            ask()
        assert refused.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert client.search_model_versions("name='secret'") == []


def test_errors_have_mlflows_shape(mesh: Mesh, client: MlflowClient) -> None:
    http = mesh.http()
    base = "/mlflow/api/2.0/mlflow"
    for path, status, code in (
        (f"{base}/traces", 404, "ENDPOINT_NOT_FOUND"),
        (f"{base}/registered-models/get", 400, "INVALID_PARAMETER_VALUE"),
        (f"{base}/registered-models/get?name=x", 404, "RESOURCE_DOES_NOT_EXIST"),
        (f"{base}/model-versions/get?name=demo&version=x", 400, "INVALID_PARAMETER_VALUE"),
        (f"{base}/registered-models/search?max_results=0", 400, "INVALID_PARAMETER_VALUE"),
        (f"{base}/registered-models/search?page_token=x", 400, "INVALID_PARAMETER_VALUE"),
    ):
        answer = http.get(path)
        assert (answer.status_code, answer.json()["error_code"]) == (status, code), path
        assert answer.json()["message"]
    refused = mesh.http("sk-mr-wrong").get(f"{base}/registered-models/search")
    assert (refused.status_code, refused.json()["error_code"]) == (401, "UNAUTHENTICATED")


def test_a_rollout_is_asked_for_over_rest(mesh: Mesh, client: MlflowClient) -> None:
    answer = mesh.http().post("/v1/rollouts", json={"model": "demo", "version": 1})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["to_version"], answer.json()["status"]) == (1, "pending")
    missing = mesh.http().post("/v1/rollouts", json={"model": "demo", "version": 9})
    assert missing.status_code == 404
    wrong = mesh.http().post("/v1/rollouts", json={"model": "demo", "version": 0})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "version")
