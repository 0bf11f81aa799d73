"""`GET /tasks`: browse tasks, newest first.

A page may be short, or empty, and still have a `nextCursor`: a call looks at a bounded number of rows, whatever is
asked for. The list has ended when `nextCursor` is null.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from taskflux.http.answers import to_json
from taskflux.http.task_desk import Listing
from taskflux.http.task_queries import read_browse, write_cursor
from taskflux.http.views import task_summary
from taskflux.tasks.submission import DEFAULT_TENANT


class ListTasks:
    """The endpoint."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    async def page(self, request: Request) -> Response:
        """A page of what the query asks for."""
        browse = read_browse(request.query_params.multi_items())
        page = await self._listing.page(DEFAULT_TENANT, browse.wanted, browse.limit, browse.after)
        document = {
            "items": [task_summary(row) for row in page.rows],
            "nextCursor": write_cursor(page.after, browse.wanted) if page.after else None,
        }
        return Response(to_json(document), media_type="application/json")
