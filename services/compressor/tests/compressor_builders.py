"""Values that the compressor's tests start from."""

from datetime import UTC, datetime

from millrace_compressor.domain import Checkpoint, Content, GatePolicy, Order, Target

TIME = datetime(2030, 1, 1, tzinfo=UTC)
GATE = GatePolicy(max_perplexity_increase=0.02)


def content(letter: str) -> Content:
    return Content(f"file:///data/{letter}", "sha256:" + letter * 64, 10)


def checkpoint(step: int = 1, *, final: bool = False, model: str = "demo") -> Checkpoint:
    return Checkpoint(
        name=f"tenants/acme/runs/run-1/checkpoints/ckpt-{model}-{step}",
        model=model,
        step=step,
        final=final,
        content=content(f"{step % 10}"),
        evaluation=content("e"),
    )


def order(step: int = 1, *, final: bool = False, tenant: str = "acme") -> Order:
    return Order(
        tenant=tenant,
        checkpoint=checkpoint(step, final=final),
        target=Target.OPENVINO_INT8,
        gate=GATE,
        deployment="tenants/acme/deployments/deployment-1",
        requested_time=TIME,
    )
