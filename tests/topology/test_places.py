"""What one service is set to must fit what another is."""

from millrace_gateway.domain import Priority
from millrace_gateway.settings import GatewaySettings
from millrace_registry.triton_config import EngineSettings


def test_the_gateway_lets_no_more_into_an_engine_than_it_takes_at_once() -> None:
    """In the engine's own queue high priority would stand behind low."""
    places = GatewaySettings().endpoint_generations
    assert places <= EngineSettings().max_sequences
    limits = GatewaySettings().capacity().limits()
    assert limits[Priority.HIGH] == places > limits[Priority.DEFAULT] > limits[Priority.LOW]
