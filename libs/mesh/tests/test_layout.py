import socket
from pathlib import Path

import pytest

from millrace_client.home import Home
from millrace_mesh.layout import (
    CALLS,
    SERVICES,
    Layout,
    LayoutError,
    layout_from_environ,
    require_free_ports,
)

SECRETS = {"internal-token": "token", "triton-control-key": "key"}


def layout(base_port: int = 8080, home: str = "/home/mesh") -> Layout:
    return Layout(Home(Path(home)), base_port)


def test_the_defaults_are_the_familiar_ports():
    ports = layout().ports
    assert (ports["gateway.http"], ports["gateway.grpc"]) == (8080, 9090)


def test_every_port_is_its_own():
    ports = layout().ports
    assert len(set(ports.values())) == len(ports) == 17


@pytest.mark.parametrize("distance", [20, 100, 500, 2000])
def test_two_meshes_share_no_port(distance: int):
    one, other = layout().ports, layout(8080 + distance).ports
    assert not set(one.values()) & set(other.values())


@pytest.mark.parametrize("base_port", [0, 80, 64526, 70000])
def test_a_base_port_that_leaves_no_room_is_refused(base_port: int):
    with pytest.raises(LayoutError, match="MILLRACE_BASE_PORT"):
        layout(base_port)


def test_the_environment_says_home_and_base_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    monkeypatch.setenv("MILLRACE_BASE_PORT", "9000")
    assert layout_from_environ() == layout(9000, str(tmp_path))


def test_the_home_is_below_the_working_directory_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("MILLRACE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert layout_from_environ().home.path == tmp_path / ".millrace"


def test_a_base_port_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MILLRACE_BASE_PORT", "eighty")
    with pytest.raises(LayoutError, match="eighty"):
        layout_from_environ()


@pytest.mark.parametrize("stage", SERVICES)
def test_each_service_is_told_where_the_ones_it_calls_listen(stage: str):
    a_layout = layout()
    environment = a_layout.service_environment(stage, SECRETS, {})
    for other in CALLS[stage]:
        listens = a_layout.service_environment(other, SECRETS, {})
        assert (
            environment[f"MILLRACE_{stage.upper()}_{other.upper()}_ADDRESS"]
            == listens[f"MILLRACE_{other.upper()}_GRPC_ADDRESS"]
        )


def test_addresses_follow_from_the_base_port_alone():
    told = {"MILLRACE_DATA_GRPC_ADDRESS": "127.0.0.1:1", "MILLRACE_DATA_INTERNAL_TOKEN": "mine"}
    environment = layout().service_environment("data", SECRETS, told)
    assert environment["MILLRACE_DATA_GRPC_ADDRESS"] == layout().address("data.grpc")
    assert environment["MILLRACE_DATA_INTERNAL_TOKEN"] == "token"


def test_storage_can_be_set_from_outside():
    url = "postgresql+psycopg://db/millrace"
    environment = layout().service_environment("data", SECRETS, {"MILLRACE_DATA_DATABASE_URL": url})
    assert environment["MILLRACE_DATA_DATABASE_URL"] == url


def test_the_tuner_asks_its_own_mesh_unless_told_whom():
    environment = layout().service_environment("tuner", SECRETS, {})
    assert environment["MILLRACE_TUNER_JUDGE_BASE_URL"] == f"{layout().gateway_url}/v1"
    assert environment["MILLRACE_TUNER_JUDGE_TENANT"] == "default"
    told = {"MILLRACE_TUNER_JUDGE_BASE_URL": "https://judge/v1"}
    environment = layout().service_environment("tuner", SECRETS, told)
    keys = {name: value for name, value in environment.items() if "_JUDGE_" in name}
    assert keys == told


def test_only_the_registry_gets_the_control_key():
    holders = [
        s for s in SERVICES if "key" in layout().service_environment(s, SECRETS, {}).values()
    ]
    assert holders == ["registry"]


def test_a_taken_port_is_named_with_the_setting():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        base = port - 1  # the NATS client port
        with pytest.raises(LayoutError, match=rf"port {port} \(nats.client\).*MILLRACE_BASE_PORT"):
            require_free_ports(layout(base))


def test_the_private_key_goes_to_those_who_commit_and_the_public_ones_to_the_registry():
    a_layout = layout()
    told = {stage: a_layout.service_environment(stage, SECRETS, {}) for stage in SERVICES}
    signs = {stage for stage in SERVICES if f"MILLRACE_{stage.upper()}_SIGNING_KEY" in told[stage]}
    assert signs == {"data", "trainer", "tuner", "compressor"}
    assert told["registry"]["MILLRACE_REGISTRY_TRUSTED_KEYS"] == str(a_layout.trusted_keys)
    for stage in set(SERVICES) - signs:
        assert str(a_layout.signing_key) not in told[stage].values()
