"""Shadow and A/B rollouts as clients and the registry see them, over HTTP and gRPC."""

from typing import Any

from gateway_fakes import Answer
from gateway_mesh import Mesh

from millrace.registry.v1 import service_pb2 as registry_pb2
from millrace_testkit.servers import wait_until

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def serve(mesh: Mesh, old: dict[str, Any], new: dict[str, Any], **route: Any) -> None:
    targets = [
        registry_pb2.RouteTarget(
            version=number, endpoints=[mesh.triton_address], chat_template="hi", **values
        )
        for number, values in ((1, old), (2, new))
    ]
    made = registry_pb2.Route(
        tenant="default", model="demo", triton_model="default.demo", targets=targets, **route
    )
    mesh.serve_routes([made])


def test_a_shadow_answers_nobody_and_is_reported(mesh: Mesh) -> None:
    serve(mesh, {"share": 1.0}, {"share": 0.0, "mirror_share": 1.0})
    mesh.triton.answer_to = lambda asked: Answer(
        ["Hel", "lo"] if asked["version"] == "1" else ["Hel", "p!"]
    )
    for stream in (False, True):
        body = {**CHAT, "temperature": 0, "stream": stream}
        answer = mesh.http().post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-millrace-version"] == "demo@1"
        assert "Hel" in answer.text and "p!" not in answer.text

    def shadow() -> Any:
        reports = [report for report in mesh.registry.reports if report.shadows]
        return reports[-1].shadows[0] if reports else registry_pb2.ShadowAnswers()

    wait_until(lambda: shadow().compared == 2, 20, "the report")
    assert (shadow().old_version, shadow().new_version, shadow().failed) == (1, 2, 0)
    assert abs(shadow().agreement - 2 * 3 / 5) < 1e-6
    ids = [request["id"] for request in mesh.triton.requests if "id" in request]
    assert len(ids) == len(set(ids))


def test_a_user_stays_on_his_side(mesh: Mesh) -> None:
    serve(mesh, {"share": 0.5}, {"share": 0.5}, split="rollout-1")
    sides: dict[str, set[str]] = {}
    for _ in range(3):
        for number in range(12):
            body = {**CHAT, "user": f"user-{number}"}
            answer = mesh.http().post("/v1/chat/completions", json=body)
            sides.setdefault(body["user"], set()).add(answer.headers["x-millrace-version"])
    assert all(len(versions) == 1 for versions in sides.values())
    assert len(set.union(*sides.values())) == 2


def test_a_safety_identifier_comes_before_a_user_and_a_key_before_nothing(mesh: Mesh) -> None:
    serve(mesh, {"share": 0.5}, {"share": 0.5}, split="rollout-1")

    def versions(**fields: str) -> set[str]:
        answers = [
            mesh.http().post("/v1/chat/completions", json={**CHAT, **fields}) for _ in range(8)
        ]
        return {answer.headers["x-millrace-version"] for answer in answers}

    assert len(versions()) == 1
    by_user = {name: versions(user=name) for name in ("a", "b", "c", "d", "e", "f")}
    for name, found in by_user.items():
        assert versions(user="someone else", safety_identifier=name) == found


def test_every_strategy_is_declared_and_read_again(mesh: Mesh) -> None:
    client = mesh.http()
    made = client.post("/v1/deployments", json={"model": "demo"}).json()
    path = f"/v1/deployments/{made['id']}"
    for given in (
        {"type": "immediate"},
        {"type": "canary", "steps": [0.2, 0.5]},
        {"type": "shadow", "share": 0.5, "bake_seconds": 4},
        {"type": "shadow", "then_canary": {"steps": [0.5], "minimum_requests": 3}},
        {"type": "blue_green", "keep_seconds": 30},
        {"type": "split", "share": 0.3, "duration_seconds": 20, "on_end": "keep_old"},
    ):
        answer = client.patch(path, json={"strategy": given})
        assert answer.status_code == 200, answer.text
        told = answer.json()["strategy"]
        assert given.items() <= {**told, "then_canary": given.get("then_canary")}.items()
        # What was told can be sent again.
        again = client.patch(path, json={"strategy": told}).json()["strategy"]
        assert again == told


def test_what_a_strategy_does_not_have_is_refused_by_name(mesh: Mesh) -> None:
    for strategy, param in (
        ({"type": "shadow", "share": 0}, "strategy.share"),
        ({"type": "shadow", "then_canary": {"steps": []}}, "strategy.then_canary.steps"),
        ({"type": "shadow", "steps": [0.5]}, "strategy.steps"),
        ({"type": "blue_green", "keep_seconds": -1}, "strategy.keep_seconds"),
        ({"type": "split", "share": 1}, "strategy.share"),
        ({"type": "split", "on_end": "toss"}, "strategy.on_end"),
        ({"type": "split", "duration_seconds": 0}, "strategy.duration_seconds"),
    ):
        body = {"model": "demo", "strategy": strategy}
        answer = mesh.http().post("/v1/deployments", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


def test_a_rollout_is_paused_resumed_and_shown_with_both_sides(mesh: Mesh) -> None:
    async def add() -> Any:
        rollout = mesh.registry.add_rollout("default")
        rollout.stage.strategy, rollout.stage.seconds = "shadow", 5
        rollout.old_side.requests, rollout.old_side.timed = 10, 8
        rollout.old_side.mean_first_token_seconds = 0.25
        rollout.new_side.requests, rollout.new_side.failures = 4, 1
        rollout.shadow.compared, rollout.shadow.agreement = 3, 0.5
        rollout.step_time.FromMilliseconds(1500)
        return rollout

    identifier = mesh.in_loop(add).name.rpartition("/")[2]
    path = f"/v1/rollouts/{identifier}"
    client = mesh.http()
    shown = client.get(path).json()
    assert (shown["paused"], shown["step_started_at"]) == (False, 1.5)
    assert shown["stage"]["seconds"] == 5
    assert shown["old"]["mean_first_token_seconds"] == 0.25
    assert (shown["new"]["failure_rate"], shown["new"]["mean_first_token_seconds"]) == (0.25, None)
    assert (shown["shadow"]["compared"], shown["shadow"]["agreement"]) == (3, 0.5)
    assert client.post(f"{path}/pause").json()["paused"] is True
    assert client.post(f"{path}/resume").json()["paused"] is False
    other = mesh.http(mesh.other_secret)
    assert other.post(f"{path}/pause").status_code == 404
