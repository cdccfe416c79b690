"""The judge: runs the tests, with stand-ins for what the program defines.

A stand-in asks the candidate, in another process, and builds the value that comes back anew out of
plain data; the comparison happens here, where no line of the program has ever run. So no
`sys.exit(0)`, printed token, patched `assert` or object that equals everything makes a test pass.
"""

import builtins
from collections.abc import Iterator, Mapping
from typing import Any

from .wire import Gone, Wire, decode, encode

_TESTS = "<tests>"
_LONGEST_DETAIL = 500
_ENDS_OF_ITERATION = (StopIteration, StopAsyncIteration)


class Over(BaseException):
    """There is no more to be learnt. Not an `Exception`: a test that expects one must not catch it.

    Args:
        outcome: `ended`: the candidate is gone; `failure`: the tests ask what cannot be asked.
        reason: Why.
    """

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Raised(Exception):
    """The program raised this."""


class Stub:
    """Stands for an object that lives in the candidate.

    It equals nothing but itself, and has no arithmetic: only plain data can pass a comparison.
    """

    def __init__(self, candidate: "Candidate", number: int) -> None:
        object.__setattr__(self, "_place", (candidate, number))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Have it called, with copies of the arguments."""
        return self._ask("call", arguments=self._sent([arguments, named]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name=name, value=self._sent(value))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    def __len__(self) -> int:
        return int(self._ask("length"))

    def _sent(self, value: Any) -> Any:
        candidate, _ = self._place
        return encode(value, candidate.number)

    def _ask(self, what: str, **more: Any) -> Any:
        candidate, number = self._place
        return candidate.ask({"do": what, "of": number, **more})


class Candidate:
    """The program on the other side.

    Attributes:
        over: Why there is no more to be learnt, if so; also if the tests caught it.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.over: Over | None = None

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request, and wait for the value that comes of it.

        Raises:
            Over: If the candidate has ended.
            Raised: If the program raised; also of the built-in type that it raised, unless that
                ends an iteration: `all(map(f, ...))` would take it for the end of the questions.
            Unencodable: If the request is too long.
        """
        try:
            self.wire.send(request)
            answer = self.wire.receive()
            if "error" not in answer:
                return decode(answer.get("value"), lambda number: Stub(self, int(number)))
            kind, text = str(answer["error"]), str(answer.get("text"))
        except Gone as error:
            raise self._end("ended", str(error)) from error
        raise _raised(str(answer.get("built_in")), f"{kind}: {text}")

    def number(self, value: Any) -> int:
        """The handle of an object of the program's.

        Raises:
            Over: If it is an object of the tests: no program could be right.
        """
        if isinstance(value, Stub):
            handle: int = value._place[1]
            return handle
        reason = f"the tests pass a {type(value).__name__}, and a program is given plain data only"
        raise self._end("failure", f"{reason}; leave this problem out")

    def _end(self, outcome: str, reason: str) -> Over:
        self.over = self.over or Over(outcome, reason)
        return self.over


def judge(wire: Wire, job: Mapping[str, Any]) -> dict[str, str]:
    """Run the tests of one job.

    Args:
        wire: To the candidate.
        job: `program`; `setup`, code that is run first, here; `names`, what the tests use of the
            program; `tests`, code that raises if the program is wrong.
    """
    candidate = Candidate(wire)
    names: dict[str, Any] = {"__name__": _TESTS}
    try:
        tests = compile(job["tests"], _TESTS, "exec")
        exec(compile(job["setup"], "<setup>", "exec"), names)
    except Exception as error:  # no fault of the program, which has not been run yet
        return _verdict("failure", f"the tests do not run: {type(error).__name__}: {error}")
    try:
        candidate.ask({"do": "load", "program": job["program"]})
        for name in job["names"]:
            names[name] = candidate.ask({"do": "get", "of": None, "name": name})
        exec(tests, names)
        verdict = _verdict("passed", "")
    except Raised as error:
        verdict = _verdict("error", str(error))
    except AssertionError as error:
        verdict = _verdict("wrong", f"{_line(error, job['tests'])} {error}".strip())
    except BaseException as error:  # a value of another type than the tests can deal with
        line = _line(error, job["tests"])
        verdict = _verdict("error", f"{line} {type(error).__name__}: {error}")
    if (over := candidate.over) is not None:
        where = _line(over, job["tests"])
        return _verdict(over.outcome, f"{where}: {over}" if where else str(over))
    return verdict


def _verdict(outcome: str, detail: str) -> dict[str, str]:
    return {"outcome": outcome, "detail": detail[:_LONGEST_DETAIL]}


def _raised(built_in: str, text: str) -> BaseException:
    """The exception that the program raised, as far as the built-in types have it."""
    kind = getattr(builtins, built_in, Exception)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in _ENDS_OF_ITERATION:
        try:
            made = type(kind.__name__, (Raised, kind), {})(text)
        except TypeError:  # it wants other arguments
            return Raised(text)
        return made if isinstance(made, BaseException) else Raised(text)
    return Raised(text)


def _line(error: BaseException, tests: str) -> str:
    """The line of the tests where it happened."""
    line, trace = "", error.__traceback__
    lines = tests.split("\n")
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _TESTS and trace.tb_lineno <= len(lines):
            line = lines[trace.tb_lineno - 1].strip()
        trace = trace.tb_next
    return line
