"""Where the SMTP server is, and how it wants to be treated."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from taskflux.providers.addresses import Address

PORTS: Final = {"starttls": 587, "implicit": 465, "none": 25}


class SmtpSettings(BaseModel):
    """The SMTP server that takes our mail."""

    model_config = ConfigDict(extra="forbid")

    host: Annotated[str, Field(pattern=r"^[^\s/@]*$", max_length=253, description="name or address of the server")] = ""
    port: Annotated[
        int | None, Field(ge=1, le=65535, description="unset: 587 for starttls, 465 for implicit, 25 for none")
    ] = None
    username: Annotated[str | None, Field(description="for AUTH; unset: no AUTH")] = None
    password: Annotated[SecretStr | None, Field(description="for AUTH")] = None
    tls: Annotated[
        Literal["starttls", "implicit", "none"],
        Field(
            description="starttls: upgraded before anything is said; implicit: TLS from the first byte; none: plaintext"
        ),
    ] = "starttls"
    tls_verify: Annotated[bool, Field(description="false accepts any certificate: for tests only")] = True
    ca_file: Annotated[str | None, Field(description="PEM file of the server's CA; unset: the system's")] = None
    sender: Annotated[
        str, Field(description="who the mails are from: ann@example.org or Ann Lee <ann@example.org>")
    ] = ""
    hostname: Annotated[
        str | None,
        Field(pattern=r"^[!-~]+$", description="what we call ourselves in EHLO; unset: the host's full name"),
    ] = None
    connections: Annotated[int, Field(ge=1, le=1000, description="connections that one process opens at most")] = 10
    max_connection_age: Annotated[
        float, Field(gt=0, description="seconds after which a connection is closed rather than used again")
    ] = 240.0
    connect_timeout: Annotated[
        float, Field(gt=0, description="seconds for the connection with its TLS, and for the greeting")
    ] = 15.0
    command_timeout: Annotated[float, Field(gt=0, description="seconds that the answer to one command may take")] = 60.0
    # RFC 5321, 4.5.3.2.6: a server may take ten minutes over the end of the data, and by then it may have the mail.
    # Whoever gives up earlier does not know, sends again, and makes duplicates.
    data_timeout: Annotated[
        float, Field(gt=0, description="seconds that the answer to the whole mail may take; shorter makes duplicates")
    ] = 600.0
    max_message_bytes: Annotated[
        int, Field(ge=1024, description="a mail above this size, attachments encoded, is refused before it is sent")
    ] = 36_700_160
    rate: Annotated[
        float | None, Field(gt=0, description="mails a second, all processes together; unset: no limit")
    ] = None

    @field_validator("sender")
    @classmethod
    def _sender_is_an_address(cls, value: str) -> str:
        if value:
            Address.parse(value)
        return value

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> SmtpSettings:
        if self.username and self.password is None:
            raise ValueError("username is set, but password is not: set both, or neither for a server without AUTH")
        if self.password is not None and not self.username:
            raise ValueError("password is set, but username is not: set both, or neither for a server without AUTH")
        if self.tls == "none" and self.ca_file:
            raise ValueError(
                "ca_file is set, but tls is none: nothing would be verified; set tls to starttls or implicit"
            )
        if not self.tls_verify and self.ca_file:
            raise ValueError(
                "ca_file is set, but tls_verify is false: nothing would be verified; set tls_verify to true"
            )
        if self.host and not self.sender:
            raise ValueError("host is set, but sender is not: say who the mails are from")
        return self

    @property
    def server_port(self) -> int:
        """`port`, or the usual one for `tls`."""
        return self.port or PORTS[self.tls]
