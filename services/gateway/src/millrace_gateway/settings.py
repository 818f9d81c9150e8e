"""What the gateway can be told, by environment variables ``MILLRACE_GATEWAY_<FIELD>``."""

from pathlib import Path

from pydantic import Field, IPvAnyNetwork, NonNegativeFloat, SecretStr
from pydantic_settings import SettingsConfigDict

from millrace_gateway.admission import Capacity
from millrace_gateway.domain import KeyLimits, Priority
from millrace_runtime.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """The gateway's settings."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_GATEWAY_")

    grpc_address: str = Field("127.0.0.1:9090", description="host:port of the public gRPC API")
    http_address: str = Field(
        "127.0.0.1:8080", description="host:port of the REST API, /livez, /readyz and /metrics"
    )
    database_url: str = Field(
        "sqlite:///.millrace/gateway.db", description="SQLAlchemy URL, SQLite or PostgreSQL"
    )
    data_address: str = Field("127.0.0.1:8086", description="host:port of the data service")
    trainer_address: str = Field("127.0.0.1:8088", description="host:port of the trainer")
    tuner_address: str = Field("127.0.0.1:8090", description="host:port of the tuner")
    compressor_address: str = Field("127.0.0.1:8092", description="host:port of the compressor")
    registry_address: str = Field("127.0.0.1:8094", description="host:port of the registry")
    operator_key_path: Path = Field(
        Path(".millrace/secrets/operator-key"),
        description="where the first operator key is written (mode 0600) at first start",
    )
    operator_tenant: str = Field(
        "default",
        pattern=r"^[a-z][a-z0-9-]{0,62}$",
        description="tenant that the first operator key belongs to",
    )
    maximum_body_bytes: int = Field(
        4 * 2**20, gt=0, description="largest request body, other than a file's"
    )
    maximum_file_bytes: int = Field(512 * 2**20, gt=0, description="largest uploaded file")
    maximum_generations: int = Field(
        1024,
        gt=0,
        description="completions in progress, waiting ones too, from which on more are refused "
        "(429), unless they are of high priority",
    )
    maximum_mirrored: int = Field(
        8,
        ge=0,
        description="copies of requests, to versions in the shadow, in progress; they are dropped "
        "as soon as a request has to wait",
    )
    endpoint_generations: int = Field(
        64,
        gt=0,
        description="completions in progress at one Triton endpoint, of all gateways; more must "
        "wait. Not above what its engine takes at once: there is no priority within the engine",
    )
    default_priority_share: float = Field(
        0.9, gt=0, le=1, description="of an endpoint, up to which default priority may fill it"
    )
    low_priority_share: float = Field(
        0.5, gt=0, le=1, description="of an endpoint, up to which low priority may fill it"
    )
    key_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of an endpoint, up to which one key may fill it; more of its requests wait",
    )
    high_priority_queue: int = Field(
        64, ge=0, description="completions of high priority that may wait for a place"
    )
    default_priority_queue: int = Field(
        64, ge=0, description="completions of default priority that may wait for a place"
    )
    low_priority_queue: int = Field(
        4, ge=0, description="completions of low priority that may wait for a place"
    )
    low_priority_queue_seconds: float = Field(
        0.015,
        gt=0,
        description="longest that one of low priority waits: until a place is free, if many are",
    )
    queue_seconds: float = Field(
        5.0, gt=0, description="longest that a completion waits for a place (429)"
    )
    requests_per_minute: int | None = Field(
        None, gt=0, description="generations that a key without a limit of its own may begin"
    )
    tokens_per_minute: int | None = Field(
        None, gt=0, description="tokens, prompts' and answers', that such a key may use"
    )
    concurrent_generations: int | None = Field(
        None, gt=0, description="generations that such a key may have in progress"
    )
    generation_seconds: float = Field(
        600.0, gt=0, description="longest that one completion may take"
    )
    engine_silence_seconds: float = Field(
        30.0, gt=0, description="silence of an engine after which it is given up for dead"
    )
    batches: int = Field(2, ge=1, description="batches that one gateway runs at the same time")
    batch_concurrency: int = Field(
        8, ge=1, description="requests of one batch in progress at the same time"
    )
    batch_requests: int = Field(50_000, ge=1, description="most requests in one batch")
    batch_patience_seconds: float = Field(
        600.0,
        ge=0,
        description="how long a batch's request is tried again while the model does not answer "
        "(503), before that is its answer",
    )
    batch_turn_seconds: float = Field(
        30.0,
        gt=0,
        description="how long a batch keeps its place at least when a tenant waits that has none",
    )
    batch_retention_days: float = Field(
        30.0, gt=0, le=36_500, description="days after its end for which a batch is listed"
    )
    webhook_allow_http: bool = Field(
        False, description="let webhooks be posted to http:// too, where anybody on the way reads"
    )
    webhook_allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description='networks that webhooks reach though they are not public: ["10.1.0.0/16"]',
    )
    webhook_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="what webhooks' signing secrets are made with, the same in all gateways; "
        "unset: what webhook_key_path holds",
    )
    webhook_key_path: Path | None = Field(
        None,
        description="where that key lies, made at first start (mode 0600); unset: webhook-key "
        "beside operator_key_path",
    )
    webhook_concurrency: int = Field(
        16, ge=1, description="webhooks that one gateway posts at the same time"
    )
    webhook_timeout_seconds: float = Field(
        15.0, gt=0, le=300, description="longest that one attempt to post a webhook may take"
    )
    webhook_retry_seconds: tuple[NonNegativeFloat, ...] = Field(
        (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400),
        description="how long to wait after each attempt to post a webhook but the last",
    )
    webhook_retention_days: float = Field(
        30.0, gt=0, le=36_500, description="days for which what was posted is listed"
    )
    mlflow_tracking_uri: str | None = Field(
        None, description="MLflow server or database that runs are tracked in; unset: none"
    )
    event_heartbeat_seconds: float = Field(
        15.0, gt=0, description="silence on an event stream after which a comment is sent"
    )

    def key_limits(self) -> KeyLimits:
        """What holds for keys that have no limits of their own."""
        return KeyLimits(
            self.requests_per_minute, self.tokens_per_minute, self.concurrent_generations
        )

    def patience_seconds(self) -> dict[Priority, float]:
        """How long those wait who do not wait for ``queue_seconds``."""
        return {Priority.LOW: min(self.low_priority_queue_seconds, self.queue_seconds)}

    def capacity(self) -> Capacity:
        """How much of an engine there is for whom."""
        return Capacity(
            self.endpoint_generations,
            shares={
                Priority.HIGH: 1.0,
                Priority.DEFAULT: self.default_priority_share,
                Priority.LOW: self.low_priority_share,
            },
            queues={
                Priority.HIGH: self.high_priority_queue,
                Priority.DEFAULT: self.default_priority_queue,
                Priority.LOW: self.low_priority_queue,
            },
            key_share=self.key_share,
        )
