"""What a step sent to models and what came back, captured for looking at later: `baton.debug`.

It is off unless the workflow asks for it, `Workflow(debug=True)`, or the process that runs the step does, `Baton(debug=True)`.
`call_llm` and `once` capture by themselves. The functions here are for calls that are made otherwise. Where nothing is captured
they do nothing, so they may stay in the code.

What is captured is copied at once; then, in a thread, secrets are taken out, `Baton(redact=)` sees the rest, and it is cut. It
is written within about 100 ms, and before the step's outcome, and read with `baton.query.list_debug_logs`.
"""

from __future__ import annotations

from collections.abc import Mapping

from baton import _step
from baton._accounts import Accounts, Log
from baton._names import uuid7
from baton._redact import Copy

__all__ = ["LoggedRequest", "is_on", "log_request", "log_response", "log_upstream_context"]


class LoggedRequest:
    """A request that was logged; see `log_response`."""

    __slots__ = ("_log",)

    def __init__(self, log: Log | None) -> None:
        self._log = log


def is_on() -> bool:
    """Whether calls of the step that runs here are captured: for code that would do work for that alone.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    return _step.accounts_for("baton.debug.is_on()").debug


def log_request(request: object, *, model: str | None = None) -> LoggedRequest:
    """Capture what is sent to a model, as it is now. One without a response is written when the attempt ends.

    Args:
        request: A dict, a model of Pydantic, or whatever it is.
        model: The model, where the request does not name it.

    Returns:
        What `log_response` takes.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.debug.log_request()")
    if not accounts.debug:
        return LoggedRequest(None)
    named = request.get("model") if isinstance(request, Mapping) else getattr(request, "model", None)
    asked_for = model if model is not None else named if isinstance(named, str) else None
    (log,) = accounts.capture(uuid7(), model=asked_for, request=accounts.snapshot(request))
    with accounts.lock:
        accounts.open_logs.append(log)
    return LoggedRequest(log)


def log_response(response: object, *, to: LoggedRequest | None = None) -> None:
    """Capture what came back, an exception too.

    Args:
        response: A response object, a dict, or whatever it is; of an exception its type and its text.
        to: The request. Without, it is the last of this attempt that has no response: say which when several are under way.
            Without any, the response is captured alone, as it is when its request has one already.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.debug.log_response()")
    if not accounts.debug:
        return
    error = response if isinstance(response, BaseException) else None
    answered = accounts.capture(
        uuid7(), response=None if error is not None else accounts.snapshot(response), error=error
    )[0]
    asked = _taken(accounts, to)
    if asked is None:
        accounts.ledger.add([], [answered])
        return
    if (context := answered.parts.pop("context", None)) is not None:
        _add_context(asked, context)
    asked.parts |= answered.parts
    asked.error = answered.error
    accounts.ledger.add([], [asked])


def log_upstream_context(results: Mapping[str, object] | None = None) -> None:
    """Capture results of other steps that this one goes by.

    What a step reads of its dependencies, as arguments or with `baton.results`, goes along with its next captured call by
    itself. This is for steps that make none, and for what they know otherwise.

    Args:
        results: By step name, or by whatever says where they are from; None for those that the attempt has read and that no
            captured call has taken along.

    Raises:
        NoWorkflow: No step of a workflow is running here.
    """
    accounts = _step.accounts_for("baton.debug.log_upstream_context()")
    if not accounts.debug:
        return
    logs = accounts.capture(uuid7())
    if results is not None:
        copy = accounts.snapshot(dict(results))
        assert copy is not None
        _add_context(logs[0], copy)
    if logs[0].parts:
        accounts.ledger.add([], logs)


def _add_context(log: Log, more: Copy) -> None:
    known = log.parts.get("context")
    if known is not None and isinstance(known.value, dict) and isinstance(more.value, dict):
        more = Copy({**known.value, **more.value}, known.weight + more.weight)
    log.parts["context"] = more


def _taken(accounts: Accounts, to: LoggedRequest | None) -> Log | None:
    """The request that a response belongs to, which is open no more."""
    with accounts.lock:
        if to is None:
            return accounts.open_logs.pop() if accounts.open_logs else None
        if to._log in accounts.open_logs:
            accounts.open_logs.remove(to._log)
            return to._log
    return None
