"""How to reach Kafka, and how records are sent and fetched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from taskflux.endpoints import SERVERS_FORM, check_authority, check_certificate, check_servers
from taskflux.stream.topics import check_topic


class KafkaSettings(BaseModel):
    """Kafka, which carries the work to the handlers, and by whose lag KEDA scales them."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    bootstrap_servers: Annotated[str, AfterValidator(check_servers), Field(description=SERVERS_FORM)] = ""
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Field(description="protocol of the brokers")
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Field(description="used with a SASL protocol")
    ] = "SCRAM-SHA-512"
    sasl_username: Annotated[str | None, Field(description="used with a SASL protocol")] = None
    sasl_password: Annotated[SecretStr | None, Field(description="used with a SASL protocol")] = None
    tls_ca_file: Annotated[
        Annotated[str, AfterValidator(check_authority)] | None,
        Field(description="PEM file of the brokers' CA; unset: the system's"),
    ] = None
    tls_cert_file: Annotated[str | None, Field(description="PEM client certificate for mutual TLS")] = None
    tls_key_file: Annotated[str | None, Field(description="PEM key of the client certificate")] = None
    topic_prefix: Annotated[
        str, AfterValidator(check_topic), Field(description="prefix of every topic and group name")
    ] = ""
    partitions: Annotated[int, Field(ge=1, le=1000, description="partitions of each topic that is created")] = 12
    replication_factor: Annotated[
        int, Field(ge=-1, le=15, description="replicas of each topic that is created; -1: the broker's default")
    ] = -1
    retention_hours: Annotated[
        float, Field(gt=0, description="hours that a created topic keeps records; below the broker's offset retention")
    ] = 96.0
    idempotent: Annotated[
        bool, Field(description="idempotent producer; false for brokers without one (the embedded one)")
    ] = True
    tansu: Annotated[
        bool, Field(description="work around the bugs of Tansu, the embedded broker of `taskflux dev`")
    ] = False
    produce_timeout: Annotated[
        float, Field(gt=0, description="seconds after which a record that Kafka has not confirmed counts as not sent")
    ] = 5.0
    request_timeout: Annotated[float, Field(gt=0, description="seconds that one request to a broker may take")] = 10.0
    session_timeout: Annotated[
        float, Field(ge=1, description="seconds without a heartbeat after which a consumer is evicted")
    ] = 10.0
    fetch_max_wait_ms: Annotated[int, Field(ge=1, description="milliseconds that a broker may hold an empty fetch")] = (
        500
    )
    batch_bytes: Annotated[
        int, Field(ge=1024, le=900_000, description="records are sent in batches of at most this size")
    ] = 262_144
    max_record_bytes: Annotated[
        int, Field(ge=1024, description="a larger record is poison: it is a dead letter, unchanged")
    ] = 1_048_576
    dead_letter_max_bytes: Annotated[
        int, Field(ge=1024, description="the largest record that the dead-letter topic is created for")
    ] = 16_777_216

    @model_validator(mode="after")
    def _is_consistent(self) -> KafkaSettings:
        sasl = self.security_protocol.startswith("SASL")
        if sasl and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"security_protocol is {self.security_protocol}, which needs sasl_username and sasl_password"
            )
        if not sasl and (self.sasl_username or self.sasl_password):
            raise ValueError(
                f"sasl_username or sasl_password is set, but security_protocol is {self.security_protocol}:"
                " set it to SASL_SSL (or SASL_PLAINTEXT)"
            )
        if self.dead_letter_max_bytes < self.max_record_bytes:
            raise ValueError("dead_letter_max_bytes is below max_record_bytes: a poison record would fit nowhere")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file belong together: set both or neither")
        if self.tls_cert_file and self.tls_key_file:
            check_certificate(self.tls_cert_file, self.tls_key_file, "tls_cert_file and tls_key_file: ")
        return self
