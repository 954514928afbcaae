"""The lab's processes: started, hurt, and ended whatever happens to the lab itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]


class Worker:
    """One place for a worker process. Whoever dies in it is followed by another."""

    def __init__(self, number: int, folder: Path, arguments: list[str], witness: str, luck: str) -> None:
        self.number = number
        self.lives = 0
        self._log = folder / f"worker-{number}.log"
        self._arguments = arguments
        self._luck = luck
        self._environment = {**os.environ, "LAB_WITNESS": witness}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended, None while it lives."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        self.lives += 1
        command = [
            *(sys.executable, "-m", "tests.lab.worker", *self._arguments),
            *("--parent", str(os.getpid()), "--luck", f"{self._luck}/{self.number}/{self.lives}"),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End it for good, if it was ever started."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(30)


class Guard:
    """A process that ends the PostgreSQL if the lab dies without a chance to. Workers end with their parent by themselves."""

    def __init__(self) -> None:
        code = (
            "import os, sys, signal\n"
            "last = [line.strip() for line in sys.stdin][-1:]\n"
            "if last and last[0].isdigit() and 'postgres' in open(f'/proc/{last[0]}/comm').read():\n"
            "    os.kill(int(last[0]), signal.SIGQUIT)\n"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def watch(self, pid: int) -> None:
        """This is the server from now on."""
        self._tell(str(pid))

    def __exit__(self, *_: object) -> None:
        self._tell("done")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
