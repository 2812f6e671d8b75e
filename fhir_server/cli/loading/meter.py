"""How far a load is: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

EVERY_SECONDS = 5.0


class Plain:
    """For logs and pipes: lines, no control characters."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, resources: int) -> None:
        self.done += resources
        now = time.monotonic()
        if now - self._last >= EVERY_SECONDS:
            self._last = now
            rate = self.done / (now - self._began)
            left = max(0, self.total - self.done) / rate if rate else 0
            print(f"{self.done:,} of {self.total:,} resources, {rate:,.0f}/s, {left:,.0f} s left", flush=True)

    def failed(self, name: str, why: str) -> None:
        print(f"failed: {name}: {why}", file=sys.stderr, flush=True)


class Bar:
    """For people: a progress bar (rich)."""

    def __init__(self, total: int, title: str = "loading") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: Any = self._bar.add_task(title, total=total, rate="")
        self._began = time.monotonic()
        self._done = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, resources: int) -> None:
        self._done += resources
        rate = self._done / max(0.001, time.monotonic() - self._began)
        self._bar.update(self._task, advance=resources, rate=f"{rate:,.0f}/s")

    def failed(self, name: str, why: str) -> None:
        self._console.print(f"failed: {name}: {why}", style="red", markup=False, highlight=False)


def meter(total: int) -> Plain | Bar:
    return Bar(total) if sys.stderr.isatty() else Plain(total)
