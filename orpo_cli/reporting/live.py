"""A part of the screen that is redrawn in place, below what is left on it."""

import threading
from collections import deque
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live

_SECONDS = 0.25
_KEPT = 50


class LivePart:
    """Redraws something four times a second until it is stopped, and then takes it down.

    Where the terminal changes its size, it may break the lines anew that are on it, and nobody knows then where the
    live part is. So the screen is cleared, and what was left on it is printed again.

    Args:
        render: what to draw now; called in another thread, too.
    """

    def __init__(self, console: Console, render: Callable[[], RenderableType]) -> None:
        self._console, self._render = console, render
        self._left_on_screen: deque[RenderableType] = deque(maxlen=_KEPT)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._begin()
        threading.Thread(target=self._keep_drawing, name="screen", daemon=True).start()

    def print(self, renderable: RenderableType) -> None:
        """Leave something on the screen, above the live part."""
        with self._lock:
            self._fit()
            self._left_on_screen.append(renderable)
            self._console.print(renderable)

    def stop(self) -> None:
        """Take the live part down."""
        self._ended.set()
        with self._lock:
            self._fit()
            self._live.stop()

    def _begin(self) -> None:
        self._size = self._console.size
        self._live = Live(get_renderable=self._render, console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def _fit(self) -> None:
        if self._console.size == self._size:
            return
        self._live.stop()
        self._console.clear()
        for renderable in self._left_on_screen:
            self._console.print(renderable)
        self._begin()

    def _keep_drawing(self) -> None:
        while not self._ended.wait(_SECONDS):
            with self._lock:
                if not self._ended.is_set():
                    self._fit()
                    self._live.refresh()
