"""Every exception Baton raises, in one tree.

BatonError
├── DefinitionError          found while a workflow is built; nothing was written
│   ├── InvalidName          outside the grammar of names             (ValueError)
│   ├── InvalidOption        a setting that cannot work               (ValueError)
│   ├── InvalidArgument      does not bind, or JSON cannot hold it    (TypeError)
│   ├── DuplicateStep        the name is taken                        (ValueError)
│   ├── UnknownStep          a dependency that was never added        (LookupError)
│   ├── SelfDependency       a step that waits for itself             (ValueError)
│   ├── CycleError           steps that wait for each other           (ValueError)
│   ├── ForeignReference     a reference into another workflow        (ValueError)
│   ├── ReferenceMismatch    a result that cannot fit the parameter   (TypeError)
│   └── NotAValue            a reference used as if it were a value   (TypeError)
├── StartError               Baton could not start
│   ├── DatabaseUnreachable  no connection, or a DSN that is none     (ConnectionError)
│   ├── SchemaMissing        `baton migrate` was never run
│   ├── SchemaOutdated       the schema is older than this library
│   ├── SchemaConflict       tables of our names that we did not create
│   ├── NotStarted           used outside `async with`                (RuntimeError)
│   ├── LocalServerError     the embedded PostgreSQL
│   └── MissingExtra         an optional package is not installed     (ImportError)
├── StepError                one step of a run
│   ├── StepFailed           it was discarded
│   ├── StepCancelled        it was cancelled, or doomed by a dependency
│   ├── WorkflowTimeout      not settled in time                      (TimeoutError)
│   ├── StepTimeout          an attempt ran longer than its timeout   (TimeoutError)
│   ├── StepCrashed          an attempt raised what is no Exception
│   ├── StreamTooLarge       streamed over the limit                  (ValueError)
│   ├── InvalidUsage         no usage of a model can be read from it  (ValueError)
│   ├── BudgetExhausted      a call of a model would be over a budget
│   ├── UnpricedModel        a strict budget, and no price is known   (LookupError)
│   └── ResultError          reading or storing a result
│       ├── NoWorkflow       the job is an ordinary Oban job          (LookupError)
│       ├── NotADependency   results are read from dependencies only  (LookupError)
│       ├── ResultNotFound   there is no such step                    (LookupError)
│       ├── NoResult         that step has stored nothing (yet)       (LookupError)
│       ├── InvalidResult    JSON cannot hold it; `path` says where   (TypeError)
│       ├── ResultTooLarge   over the limit                           (ValueError)
│       └── ResultMismatch   does not fit the annotated type          (TypeError)
└── StorageError             the database said no
    ├── RunNotFound          no such run                              (LookupError)
    ├── BudgetNotFound       no such budget                           (LookupError)
    ├── KeyConflict          the key's live run has another graph     (ValueError)
    ├── JobsGone             steps cannot run again: jobs were pruned (LookupError)
    ├── RunEnding            not while the run is being cancelled
    └── QueryTimeout         a read took too long, and was given up   (TimeoutError)
"""

from collections.abc import Sequence


class BatonError(Exception):
    """Base of everything Baton raises on purpose."""


class DefinitionError(BatonError):
    """The workflow as built cannot be inserted. Nothing was written."""


class InvalidName(DefinitionError, ValueError):
    """A workflow, step or queue name outside the grammar."""


class InvalidOption(DefinitionError, ValueError):
    """A setting that cannot work, such as no attempts at all."""


class InvalidArgument(DefinitionError, TypeError):
    """An argument that does not bind to the step, or that JSON cannot hold."""


class DuplicateStep(DefinitionError, ValueError):
    """Two steps of one workflow, or two registered functions, share a name."""


class UnknownStep(DefinitionError, LookupError):
    """A dependency that was never added."""


class SelfDependency(DefinitionError, ValueError):
    """A step that waits for itself."""


class CycleError(DefinitionError, ValueError):
    """Steps that wait for each other; `path` begins and ends with the same step."""

    def __init__(self, workflow: str, path: Sequence[str]) -> None:
        shown = path if len(path) <= 12 else [*path[:6], f"... {len(path) - 11} more ...", *path[-5:]]
        super().__init__(
            f"workflow {workflow!r} has a cycle: {' -> '.join(shown)}; remove one of these dependencies"
        )
        self.path = tuple(path)


class ForeignReference(DefinitionError, ValueError):
    """A reference to a step of another workflow."""


class ReferenceMismatch(DefinitionError, TypeError):
    """A step's result cannot be what the parameter wants."""


class NotAValue(DefinitionError, TypeError):
    """A reference was used as if the step had already run."""


class StartError(BatonError):
    """Baton could not start."""


class DatabaseUnreachable(StartError, ConnectionError):
    """PostgreSQL does not answer, refuses us, or the DSN is none."""


class SchemaMissing(StartError):
    """Baton's tables are not there."""


class SchemaOutdated(StartError):
    """Baton's tables are of an older version than this library needs."""


class SchemaConflict(StartError):
    """Tables with Baton's names exist that Baton did not create."""


class NotStarted(StartError, RuntimeError):
    """Used before `async with baton` (or `await baton.start()`), or after its end."""


class LocalServerError(StartError):
    """The embedded PostgreSQL could not be found, created or started."""


class MissingExtra(StartError, ImportError):
    """An optional package is not installed; the message has the command."""


class StepError(BatonError):
    """Something about one step of a run."""


class StepFailed(StepError):
    """The step was discarded: it used all its attempts.

    Attributes:
        step: Name of the step.
        error: The last attempt's error text, traceback included.
    """

    def __init__(self, message: str, *, step: str = "", error: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.error = error


class StepCancelled(StepError):
    """The step was cancelled, by itself, by somebody, or because of a dependency.

    Attributes:
        step: Name of the step.
        error: The reason, where one is known.
    """

    def __init__(self, message: str, *, step: str = "", error: str | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.error = error


class WorkflowTimeout(StepError, TimeoutError):
    """The run, or the step waited for, did not settle in time. It goes on running."""


class StepTimeout(StepError, TimeoutError):
    """An attempt ran longer than the step's `timeout`."""


class StepCrashed(StepError):
    """An attempt raised something that is no Exception: SystemExit, CancelledError and the like."""


class StreamTooLarge(StepError, ValueError):
    """A chunk is over a megabyte, or the attempt's chunks are over the limit set with `Baton(stream_limit=)`."""


class InvalidUsage(StepError, ValueError):
    """What a model used cannot be read from this, or is no such count."""


class BudgetExhausted(StepError):
    """A call of a model would take a budget over one of its limits. Nothing was called.

    Attributes:
        budget: Key of the budget, None for the run's own.
    """

    def __init__(self, message: str, *, budget: str | None = None) -> None:
        super().__init__(message)
        self.budget = budget


class UnpricedModel(StepError, LookupError):
    """A budget in dollars is strict about calls whose price is not known, and this is one. Nothing was called."""


class ResultError(StepError):
    """A result could not be read or stored."""


class NoWorkflow(ResultError, LookupError):
    """The job belongs to no workflow: it is an ordinary Oban job."""


class NotADependency(ResultError, LookupError):
    """A step reads results of the steps it waits for, and of no others."""


class ResultNotFound(ResultError, LookupError):
    """The workflow has no step of that name."""


class NoResult(ResultError, LookupError):
    """The step is there but has stored nothing: it has not completed, or was cancelled or discarded."""


class InvalidResult(ResultError, TypeError):
    """JSON or PostgreSQL cannot hold this value; `path` leads to it.

    Attributes:
        path: Where the value is, for instance `result["rows"][3].score`.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ResultTooLarge(ResultError, ValueError):
    """The encoded value is over the limit set with `Baton(result_limit=)`."""


class ResultMismatch(ResultError, TypeError):
    """A stored value does not fit the type that the receiver is annotated with."""


class StorageError(BatonError):
    """The database said no."""


class RunNotFound(StorageError, LookupError):
    """There is no run with that id; it may have been pruned."""


class BudgetNotFound(StorageError, LookupError):
    """There is no budget with that key, or the run has none of its own."""


class KeyConflict(StorageError, ValueError):
    """A live run has this key and another definition.

    Attributes:
        run_id: Id of the live run that holds the key.
    """

    def __init__(self, message: str, *, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class JobsGone(StorageError, LookupError):
    """Steps cannot run again, because Oban pruned their jobs, and with them their arguments.

    Attributes:
        steps: Their names.
    """

    def __init__(self, message: str, *, steps: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.steps = tuple(steps)


class RunEnding(StorageError):
    """Steps of the run still run, though it was cancelled or on what failed; it can be retried when they have ended."""


class QueryTimeout(StorageError, TimeoutError):
    """A read of `baton.query` took longer than two seconds, and the database gave it up. Ask for less."""
