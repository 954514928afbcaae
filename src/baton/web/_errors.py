"""What a caller is told when something is refused or fails: a text and an id, which the log has, too."""

import logging
import secrets

import orjson
import psycopg
import psycopg_pool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from baton import errors

logger = logging.getLogger("baton.web")

_AWAY = "the database does not answer in time; try again"


class Refused(HTTPException):
    """A request that is not served, with the reason in words for whoever sent it."""


def answer(error: Exception, where: str) -> Response:
    """The response for an exception, which is logged under the id that it carries. It tells nothing of what is behind.

    Args:
        where: Method and path.
    """
    error_id = secrets.token_hex(6)
    status, text = _told(error)
    if status == 503 and not isinstance(error, HTTPException):
        # Known, over when the database is back, and told at each request until then: a line, without the way to it.
        logger.warning(
            "error %s at %s: %s (%s: %s)", error_id, where, text, type(error).__name__, _line(error)
        )
    elif status >= 500 and not isinstance(error, HTTPException):
        logger.error("error %s at %s: %s", error_id, where, text, exc_info=error)
    elif status >= 400:
        logger.info("refused %s at %s: %d %s", error_id, where, status, text)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return Response(
        orjson.dumps({"error": text, "id": error_id}), status, headers, media_type="application/json"
    )


def _told(error: Exception) -> tuple[int, str]:
    match error:
        case HTTPException():
            return error.status_code, str(error.detail)
        case errors.NotStarted():
            return 503, "Baton has not started here, or has stopped; try again shortly"
        case errors.RunNotFound() | errors.ResultNotFound() | errors.NoResult():
            return 404, "there is no such run or step; it may have been pruned"
        case errors.QueryTimeout():
            return 503, _line(error)
        case errors.InvalidOption():
            return 400, _line(error)
        case errors.RunEnding() | errors.JobsGone() | errors.KeyConflict():
            return 409, _line(error)
        case (
            psycopg.OperationalError()
            | psycopg_pool.PoolTimeout()
            | errors.DatabaseUnreachable()
            | TimeoutError()
        ):
            return 503, _AWAY
    return 500, "something went wrong here; the log has it under this id"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
