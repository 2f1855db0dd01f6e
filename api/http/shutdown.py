"""Release long-polling requests when the server is told to stop; uvicorn waits for every open request."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def release_on_stop(*releases: Callable[[], None]) -> None:
    """Call functions in the event loop at the first SIGINT or SIGTERM, before uvicorn's own handler runs.

    uvicorn has no hook for this: its handler runs first, and the lifespan's end comes after the last response.
    SIGTERM is reported to uvicorn as SIGINT: uvicorn raises a captured SIGTERM again when it exits, so the exit code of
    a requested stop would not be 0. Outside of the main thread Python allows no signal handlers: nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop, is_stopping = asyncio.get_running_loop(), False
    for number in (signal.SIGINT, signal.SIGTERM):
        handler_of_server = signal.getsignal(number)

        def stop(number: int, frame: FrameType | None, handler: Any = handler_of_server) -> None:
            nonlocal is_stopping
            for release in releases:
                loop.call_soon_threadsafe(release)
            if number == signal.SIGINT or not is_stopping:  # only a second SIGINT makes uvicorn drop open requests
                is_stopping = True
                handler(signal.SIGINT, frame)

        signal.signal(number, stop)
