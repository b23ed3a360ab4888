"""What a sum over ranks takes, as a launch of a recording: a part of `abi`.

The sum is a script of steps, each of `STEP_SLOTS` int64 slots: what it does, and what it does that with.

    NUMBER   header                                  the call's number, u32, where a frame's header has it
    ADD      to, x, y, count                         to = x + y, f32; y 0: to = x
    SEND     link, frame, bytes
    RECEIVE  link, frame, bytes, header              the frame must begin as `header` does, HEADER_BYTES
    HALVES   to, x, count                            numbers x, f32, as f16
    FLOATS   to, x, count                            numbers x, f16, as f32
    LOOK     flag                                    the sum is made; an f32 above 0 stops the program

A link has `LINK_SLOTS` int64 slots: functions that write and read, their handle (a descriptor, or an SSL*), 1 where
they are OpenSSL's (`SSL_write_ex`, `SSL_read_ex`, which say in a slot how many bytes went) and 0 where they are `write`
and `read`; 1 once it was closed here; bytes sent and received, counted; that slot.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

NUMBER, ADD, SEND, RECEIVE, HALVES, FLOATS, LOOK = range(7)
STEP_SLOTS = 6
WRITE, READ, HANDLE, IS_TLS, IS_CLOSED, SENT, RECEIVED, MOVED = range(8)
LINK_SLOTS = 8
HEADER_BYTES = 12

# The slots of a rank's state. may: of how many numbers sums may be made now; one of others stops the program at once.
# call: the number of the last thing that the group did together. stopped: at which step a sum stopped the program, -1:
# none did; moved: bytes of that step that went already. made: sums since Python looked last; what follows: when each
# began and ended, in ns, of the last SPANS of them.
MAY, CALL, STOPPED, MOVED_AT, MADE, SPANS_AT = range(6)
SPANS = 1 << 10
STATE_SLOTS = SPANS_AT + 2 * SPANS + 4  # and what a clock says
NOT_BEGUN = -2  # in place of a step


class SumRanks(NamedTuple):
    """One sum over ranks: the steps of a script, one after the other. Where one cannot be done now (nothing came for as
    long as a read waits, an error, another header, the end of a pass) the program stops after this launch, and the
    state says at which step: Python goes on from there. One item."""

    script: Annotated[int, "address of (steps, STEP_SLOTS) int64"]
    steps: Annotated[int, "how many"]
    state: Annotated[int, "address of the rank's state"]
    halt: Annotated[int, "address of an int64 that stops the program: 1"]
    numbers: Annotated[int, "that the sum makes"]
