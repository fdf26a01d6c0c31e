"""Hanging a network card up beside other work: QEMU can be started, or load a state, while links, rules and names are made."""

from __future__ import annotations

import threading

from insula.networks.fabric import attach
from insula.networks.plan import Attached
from insula.store.names import Home


class Hanging:
    """A card on its way into its network. The descriptor of its tap, ``tap``, is there at once, and the caller's to close;
    nothing passes it until the card hangs, behind its firewall.

    Raises as `attach`; then it does not hang.
    """

    def __init__(self, home: Home, attached: Attached) -> None:
        self._home, self._attached = home, attached
        self._opened = threading.Event()
        self._taps: list[int] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"hang up {attached.nic.key}")
        self._thread.start()
        try:
            self._opened.wait()
        except BaseException:  # Ctrl-C: nobody would have it taken off before it hangs
            self.join()
            raise
        if not self._taps:
            self.wait()
        self.tap: int = self._taps[0]

    def _work(self) -> None:
        try:
            tap = attach(self._home, self._attached, self._have)
            if not self._taps:  # a card on the host's own was there at once
                self._have(tap)
        except BaseException as error:  # noqa: BLE001 (raised by who waits)
            self._error = error
        finally:
            self._opened.set()

    def _have(self, tap: int) -> None:
        self._taps.append(tap)
        self._opened.set()

    def join(self) -> None:
        """Return when it hangs, or does not."""
        self._thread.join()

    def wait(self) -> None:
        """Return when it hangs. Raises as `attach`."""
        self.join()
        if self._error is not None:
            raise self._error
