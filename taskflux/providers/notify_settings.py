"""Where the notification service is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class NotifySettings(BaseModel):
    """The notification service: where it is named, mails and short messages go out through it."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s/?#]+[^\s?#]*$",
            description="where `taskflux run notify` serves; unset: handlers speak to the providers themselves",
        ),
    ] = None
    connect_timeout: Annotated[float, Field(gt=0, description="seconds that a connection may take")] = 5.0
    # Above what a mail may take there (SMTP's own ten minutes), below what process-email gives an attempt.
    read_timeout: Annotated[
        float, Field(gt=0, description="seconds that an answer may take; after it nobody knows what was sent")
    ] = 840.0
    connections: Annotated[int, Field(ge=1, le=1000, description="connections that one process opens at most")] = 64
