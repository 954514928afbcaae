"""What may become of the steps of a run: a set of possible states for each, closed over what the engine and its users may do,
and narrowed by each observation. An empty set is a bug. Pure.

A crash leaves open whether something was committed, and a call without an answer whether it will be. So the model does not say
what is, but what can be; between two looks it follows every way on, and a look leaves one of them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.lab.schedule import Flow, StepPlan, value_of

SETTLED = frozenset({"completed", "cancelled", "discarded", "skipped"})
FAILED = frozenset({"cancelled", "discarded"})
LIVE = frozenset({"held", "released"})


class Contradiction(Exception):
    """A step is in a state that nothing which happened can have led to."""

    def __init__(self, tag: str, step: str, seen: str, possible: Iterable[str]) -> None:
        super().__init__(f"{tag}/{step} is {seen}; it can only be {' or '.join(sorted(possible))}")
        self.step = step
        self.seen = seen


@dataclass(slots=True)
class Belief:
    """What is known of one run.

    Attributes:
        states: The possible states of each step, by name.
        cancel: A cancel of the run was called: no, it may have come through, or it has.
        cancelled_steps: Steps whose cancel, by Baton or by Oban, was called.
        retry: A retry was called.
    """

    flow: Flow
    states: dict[str, frozenset[str]]
    cancel: str = "no"
    cancelled_steps: set[str] = field(default_factory=set)
    retry: bool = False

    @classmethod
    def inserted(cls, flow: Flow) -> "Belief":
        """Of a run just inserted: what waits for nothing is released."""
        return cls(flow, {step.name: frozenset({"held" if step.deps else "released"}) for step in flow.steps})

    @classmethod
    def rerun(cls, flow: Flow) -> "Belief":
        """Of a run that copied what had settled in another."""
        copied = frozenset({"completed", "skipped"})
        return cls(flow, {step.name: LIVE | copied for step in flow.steps})

    # --- what users do --------------------------------------------------------------------------------

    def cancel_called(self) -> None:
        self.cancel = "may"

    def cancel_answered(self) -> None:
        """From here on nothing settles in another way; what did so before is among the possible."""
        self._close()
        self.cancel = "has"

    def cancel_step_called(self, step: str) -> None:
        self.cancelled_steps.add(step)

    def retry_called(self) -> None:
        self.retry = True
        self._close()
        self.cancel = "may" if self.cancel == "has" else self.cancel

    # --- what is seen ---------------------------------------------------------------------------------

    def observe(self, seen: Mapping[str, str]) -> None:
        """Narrow each step to what it was seen to be.

        Raises:
            Contradiction: That was not among the possible.
        """
        self._close()
        for name, state in seen.items():
            possible = self.states[name]
            self.states[name] = possible & {state}
            if not self.states[name]:
                raise Contradiction(self.flow.tag, name, state, possible)

    def finals(self) -> dict[str, frozenset[str]]:
        """The states in which each step can end."""
        copy = Belief(self.flow, dict(self.states), self.cancel, set(self.cancelled_steps), self.retry)
        copy._close()
        return {name: states & SETTLED for name, states in copy.states.items()}

    def _close(self) -> None:
        """Add every state that can be reached from the possible ones."""
        changed = True
        while changed:
            changed = False
            for step in self.flow.steps:
                before = self.states[step.name]
                after = before | self._next(step, before)
                if after != before:
                    self.states[step.name] = after
                    changed = True

    def _next(self, step: StepPlan, states: frozenset[str]) -> frozenset[str]:
        reached: set[str] = set()
        deps = [self.states[dep] for dep in step.deps]
        if "held" in states:
            reached |= _released(step, deps)
        if "released" in states:
            reached |= self._outcomes(step)
        if states & LIVE and (
            (self.cancel != "no" and step.runs_on != "always") or step.name in self.cancelled_steps
        ):
            reached.add("cancelled")
        if self.retry and states & SETTLED and self._in_cone(step):
            reached |= LIVE
        return frozenset(reached)

    def _outcomes(self, step: StepPlan) -> set[str]:
        """What a step that runs can come to, by its plan."""
        if self.cancel == "has" and step.runs_on != "always":
            return {"cancelled"}
        match step.kind:
            case "fail":
                # It completes once its flow is retried.
                return {"discarded", "completed"} if self.flow.retried else {"discarded"}
            case "cancel":
                return {"cancelled"}
            case _:
                return {"completed"}

    def _in_cone(self, step: StepPlan) -> bool:
        """Whether a retry can reach it: it, or something that it waits for, may have failed."""
        by_name = {each.name: each for each in self.flow.steps}
        waiting, seen = [step.name], set()
        while waiting:
            name = waiting.pop()
            if self.states[name] & FAILED:
                return True
            waiting += [dep for dep in by_name[name].deps if dep not in seen]
            seen.update(by_name[name].deps)
        return False


def _released(step: StepPlan, deps: list[frozenset[str]]) -> set[str]:
    """What a held step can become when its dependencies may be in these states."""
    reached: set[str] = set()
    everything = [states & SETTLED for states in deps]
    if all(any(step.accepts(state) for state in states) for states in everything):
        if step.runs_on != "failure":
            reached.add("released")
        else:
            if any(states & FAILED for states in everything):
                reached.add("released")
            if all(states - FAILED for states in everything):
                reached.add("skipped")
    refused = {state for states in everything for state in states if not step.accepts(state)}
    if refused & FAILED:
        reached.add("cancelled")
    if "skipped" in refused:
        reached.add("skipped")
    return reached


@dataclass(frozen=True, slots=True)
class Expected:
    """How a flow that nobody interferes with ends, known before it is inserted."""

    states: Mapping[str, str]
    values: Mapping[str, str]
    outcome: str

    @property
    def digest(self) -> str:
        return digest(self.values)


def expect(flow: Flow) -> Expected | None:
    """The one end of a flow without actions; None where it hangs on which of two dependencies settles first."""
    if flow.actions:
        return None
    states: dict[str, str] = {}
    for name, finals in Belief.inserted(flow).finals().items():
        if len(finals) > 1:
            return None
        (states[name],) = finals
    values: dict[str, str] = {}
    for step in flow.steps:
        if states[step.name] == "completed":
            values[step.name] = value_of(flow.tag, step.name, {dep: values.get(dep) for dep in step.deps})
    return Expected(states, values, _outcome(flow, states))


def digest(values: Mapping[str, str]) -> str:
    """The values of a run as one text."""
    text = ",".join(f"{name}={values[name]}" for name in sorted(values))
    return hashlib.sha256(text.encode()).hexdigest()


def _outcome(flow: Flow, states: Mapping[str, str]) -> str:
    """Failed, if a step failed and somebody minds: nobody waits for it, or not all of those who do were told to ignore it."""
    for step in flow.steps:
        waiting = [other for other in flow.steps if step.name in other.deps and other.runs_on == "success"]
        if states[step.name] in FAILED and not (
            waiting and all(other.accepts(states[step.name]) for other in waiting)
        ):
            return "failed"
    return "completed"
