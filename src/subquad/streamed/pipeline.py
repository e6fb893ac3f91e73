"""Three hands at work at once: one reads the next step, one runs the kernels, one writes the range before."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from subquad import forward
from subquad.inputs import Array, Inputs, empty
from subquad.kernels import layout
from subquad.kernels.layout import STEP
from subquad.options import no_options
from subquad.patterns.base import Shape
from subquad.plan.tables import Phase, Plan, TiledPhase
from subquad.streamed.arrays import Rows, Stored, bytes_of
from subquad.streamed.budget import Cut, Sizes
from subquad.streamed.journal import Journal, Unit
from subquad.streamed.shares import Share, Surroundings, neighbours, table_bytes
from subquad.streamed.stretches import KeySpans, shared
from subquad.streamed.tables import clipped, in_buffer, reached, visited

# What was written is made last on the disk after so much of it, or so long.
SYNC_BYTES, SYNC_SECONDS = 64 << 20, 1.0

# Stands before phases that go on from what the output holds.
_NO_NUMBERS = np.empty(0, np.int64)
_NOTHING = TiledPhase(
    np.empty((0, layout.TILE_COLUMNS), np.int64),
    np.empty((0, layout.RUN_COLUMNS), np.int64),
    _NO_NUMBERS,
    _NO_NUMBERS,
    np.empty(0, np.uint16),
)


class Arrays(NamedTuple):
    """What is read and written, and how it is computed."""

    query: Stored
    key: Stored
    value: Stored
    out: Stored
    lse: Stored | None
    compute_dtype: np.dtype[np.generic]
    scale: float
    threads: int


class Work(NamedTuple):
    """A share of the rows for some heads, and the ranges it is cut into."""

    pattern: int
    number: int  # of the share
    share: Share
    sizes: Sizes
    cut: Cut
    heads: list[tuple[slice, list[int]]]  # key heads, and the query heads that go with them

    def units(self, batches: int) -> Iterator[Unit]:
        for batch in range(batches):
            for head in range(len(self.heads)):
                for first in range(0, len(self.share), self.cut.rows):
                    stop = min(first + self.cut.rows, len(self.share))
                    yield Unit(self.pattern, self.number, batch, head, first, stop)

    def row_count(self, unit: Unit) -> int:
        """Rows of a unit, over its heads."""
        rows = sum(stop - start for (start, stop), _ in self.share.pieces(unit.first, unit.stop))
        return rows * len(self.heads[unit.head][1])

    def head_runs(self, unit: Unit) -> list[tuple[slice, slice]]:
        """Query heads that follow one another, and their places in a buffer."""
        return [(slice(*heads), places) for heads, places in neighbours(np.array(self.heads[unit.head][1]))]

    def pieces(self, unit: Unit) -> Iterator[tuple[Rows, slice, slice, slice]]:
        """What a unit writes: rows and their slots, heads and their places."""
        for rows, slots in self.share.pieces(unit.first, unit.stop):
            for heads, places in self.head_runs(unit):
                yield rows, slots, heads, places


@dataclass
class Part:
    """Slots of a share, the phases of their plan, and the keys those reach."""

    first: int
    stop: int
    phases: list[Phase]
    reach: KeySpans
    plan: Plan | None = None  # for the keys all at once: made on first use, and the phases are dropped then

    def moved(self, by: int, window: Rows) -> Part:
        """The same, so many rows on; of its keys those in the window move along."""
        moves = (self.reach.start >= window[0]) & (self.reach.start < window[1])
        reach = KeySpans(self.reach.start + by * moves, self.reach.stop + by * moves)
        return Part(self.first + by, self.stop + by, self.phases, reach, self.plan)


class Step(NamedTuple):
    """One call of the kernels: some rows against the keys in a buffer."""

    unit: Unit
    number: int  # of the unit, in this run
    slots: slice  # of the unit
    plan: Plan
    buffer: int  # which keys
    held: int  # keys in it
    starts: bool  # the first step of its unit
    writes: bool  # the plan writes every row; else it goes on from what the output holds
    last: bool  # of its unit


class Pipeline:
    """The units of one work that are not done yet, in order."""

    def __init__(self, arrays: Arrays, work: Work, journal: Journal, done: Callable[[Unit], None]) -> None:
        self.arrays, self.work, self.journal, self.done = arrays, work, journal, done
        sizes, (rows, keys, _) = work.sizes, work.cut
        dtype = arrays.compute_dtype
        # a kernel that copies keys a whole step at a time may begin up to a step before the first one
        self.keys, self.values = (
            [empty((sizes.key_heads, keys + STEP, width), dtype, name)[:, STEP:] for _ in range(2)]
            for width, name in ((sizes.d, "buffer of keys"), (sizes.d_v, "buffer of values"))
        )
        self.queries = [empty((sizes.query_heads, rows, sizes.d), dtype, "buffer of queries") for _ in range(2)]
        self.outs = [empty((sizes.query_heads, rows, sizes.d_v), dtype, "buffer of output") for _ in range(2)]
        self.sums = [empty((sizes.query_heads, rows), dtype, "buffer of lse") for _ in range(2)]
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._syncing: Future[None] | None = None
        self._latest: tuple[Part, Surroundings | None] | None = None

    def run(self, units: Iterable[Unit]) -> None:
        reader, writer, syncer = (ThreadPoolExecutor(1, f"subquad-{hand}") for hand in ("read", "write", "sync"))
        steps = self._steps(units)
        written: dict[int, Future[None]] = {}
        try:
            following = reader.submit(next, steps, None)
            while (step := following.result()) is not None:
                following = reader.submit(next, steps, None)
                if step.starts and step.number >= 2:  # the buffer of the unit before the last is free again
                    written.pop(step.number - 2).result()
                self._attend(step)
                if step.last:
                    written[step.number] = writer.submit(self._write, step.unit, step.number, syncer)
            for future in written.values():
                future.result()
            self._sync(self.journal.take(), self._syncing)
        except BaseException:
            writer.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._sync(self.journal.take(), self._syncing)
            raise
        finally:
            for hand in (reader, writer, syncer):
                hand.shutdown(wait=True, cancel_futures=True)

    # --- the reader's hand --------------------------------------------------------------------------------------

    def _steps(self, units: Iterable[Unit]) -> Iterator[Step]:
        """Steps with their buffers filled. A step is made while the one before it runs, in the other buffer."""
        none = KeySpans(np.arange(0), np.arange(0))
        held, owner, buffer, most = none, None, 1, self.work.cut.keys
        for number, unit in enumerate(units):
            self._read_queries(unit, number)
            if owner != (unit.batch, unit.head):
                held, owner = none, (unit.batch, unit.head)
            for part in self._parts(unit.first, unit.stop):
                edges = part.reach.cuts(most)
                for at, (low, high) in enumerate(edges):
                    buffer = 1 - buffer
                    wanted = part.reach.within(low, high)
                    self._read_keys(unit, wanted, held, buffer)
                    held = wanted
                    starts = at == 0 and part.first == unit.first
                    last = at == len(edges) - 1 and part.stop == unit.stop
                    writes = starts and self._covers(unit, part)
                    plan = self._plan(part, wanted, (low, high) if len(edges) > 1 else None, writes)
                    slots = slice(part.first - unit.first, part.stop - unit.first)
                    yield Step(unit, number, slots, plan, buffer, wanted.total, starts, writes, last)

    def _parts(self, first: int, stop: int) -> Iterator[Part]:
        """A range, or parts of it where the tables of the whole would be too large."""
        share, gap = self.work.share, self.work.sizes.gap
        around = share.surroundings(first, stop, gap)
        if self._latest is not None:
            known, its_surroundings = self._latest
            if (known.first, known.stop) == (first, stop):  # heads that follow one another share it
                yield known
                return
            by = first - known.first
            if around is not None and its_surroundings is not None and known.plan is not None:
                alike = around.before == its_surroundings.before and known.stop + by == stop
                if alike and by % share.period == 0:
                    moved = known.moved(by, its_surroundings.window)
                    self._latest = moved, around
                    yield moved
                    return
        self._latest = None
        phases = share.plan(first, stop)
        if table_bytes(phases) > self.work.cut.table_bytes and stop - first > share.lanes:
            middle = (first + stop) // 2
            yield from self._parts(first, middle)
            yield from self._parts(middle, stop)
            return
        part = Part(first, stop, phases, reached(phases, gap))
        self._latest = part, around
        yield part

    def _covers(self, unit: Unit, part: Part) -> bool:
        """Whether the first phase has every row of the unit."""
        share = self.work.share
        whole = (part.first, part.stop) == (unit.first, unit.stop)
        return whole and share.in_order and len(share.rows(part.first, part.stop)) == part.stop - part.first

    def _plan(self, part: Part, wanted: KeySpans, edges: Rows | None, writes: bool) -> Plan:
        """The plan of some rows against the keys in a buffer."""
        if part.plan is not None:
            return part.plan
        share = self.work.share
        local = Shape.aligned(part.stop - part.first, wanted.total)
        rows = share.slots(part.first, part.stop)
        phases: list[Phase] = [] if writes else [_NOTHING]  # phases after the first go on from the output
        for phase in part.phases:
            if edges is not None:
                phase = clipped(phase, *edges, share.shape.n_k)
            if isinstance(phase, TiledPhase) and phases:
                phase = visited(phase)
            phases.append(in_buffer(phase, rows, wanted, local.shift, share.lanes, share.shape.shift))
        plan = Plan(local, share.lanes, tuple(phases), 0)
        if edges is None:
            part.plan, part.phases = plan, []
        return plan

    def _read_queries(self, unit: Unit, number: int) -> None:
        into = self.queries[number % 2]
        for rows, slots in neighbours(self.work.share.slots(unit.first, unit.stop)):
            for heads, places in self.work.head_runs(unit):
                self.arrays.query.read(unit.batch, heads, rows, into[places, slots])

    def _read_keys(self, unit: Unit, wanted: KeySpans, held: KeySpans, buffer: int) -> None:
        """Fill a buffer: what the other one holds is copied, the rest is read."""
        kept, fresh = shared(wanted, held)
        sides = ((self.arrays.key, self.keys), (self.arrays.value, self.values))
        for _, buffers in sides:
            target, source = buffers[buffer], buffers[1 - buffer]
            places = (wanted.local(kept.start), held.local(kept.start), kept.stop - kept.start)
            for to, begin, size in zip(*(x.tolist() for x in places), strict=True):
                target[:, to : to + size] = source[:, begin : begin + size]
        heads = self.work.heads[unit.head][0]
        for stored, buffers in sides:
            target = buffers[buffer]
            for start, stop, to in zip(*(x.tolist() for x in (*fresh, wanted.local(fresh.start))), strict=True):
                stored.read(unit.batch, heads, (start, stop), target[:, to : to + stop - start])

    # --- the kernels --------------------------------------------------------------------------------------------

    def _attend(self, step: Step) -> None:
        arrays, which = self.arrays, step.number % 2
        n_heads = len(self.work.heads[step.unit.head][1])
        out, lse = self.outs[which][None, :n_heads], self.sums[which][None, :n_heads]
        if step.starts and not step.writes:
            out[...], lse[...] = 0, -np.inf
        q = self.queries[which][None, :n_heads, step.slots]
        k, v = (buffers[step.buffer][None, :, : step.held] for buffers in (self.keys, self.values))
        inputs = Inputs((q, k, v), (1, n_heads), arrays.compute_dtype)
        out, lse = out[:, :, step.slots], lse[:, :, step.slots]
        part = forward.Part(step.plan, (0,), range(n_heads))
        forward.run(part, inputs, no_options(inputs), out, lse, arrays.scale, arrays.threads)

    # --- the writer's hand --------------------------------------------------------------------------------------

    def _write(self, unit: Unit, number: int, syncer: ThreadPoolExecutor) -> None:
        checksum = 0
        stored = [(self.arrays.out, self.outs[number % 2]), (self.arrays.lse, self.sums[number % 2])]
        for rows, slots, heads, places in self.work.pieces(unit):
            for target, buffer in stored:
                if target is None:
                    continue
                values = buffer[places, slots].astype(target.dtype, copy=False)
                checksum = _checksum(values, checksum)
                try:
                    target.write(unit.batch, heads, rows, values)
                except OSError as error:
                    what = (
                        f"{target.name} cannot be written at rows {rows[0]:,} to {rows[1]:,}: {error.strerror or error}"
                    )
                    way_out = "what is done stays done: set that right, and call again to go on"
                    raise OSError(error.errno, f"{what}; {way_out}") from error
                self._unsynced += values.nbytes
        self.journal.add(unit, checksum)
        due = self._unsynced >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_SECONDS
        if due and (self._syncing is None or self._syncing.done()):
            self._unsynced, self._synced_at = 0, time.monotonic()
            # The disk works on while the next ranges are written: waiting for it here took as long as the kernels.
            self._syncing = syncer.submit(self._sync, self.journal.take(), self._syncing)
        self.done(unit)

    def _sync(self, lines: list[str], before: Future[None] | None) -> None:
        """Note ranges as done, once what was written is on the disk."""
        if before is not None:
            before.result()
        sync(self.arrays)
        self.journal.commit(lines)


def sync(arrays: Arrays) -> None:
    for written in (arrays.out, arrays.lse):
        if written is not None:
            written.sync()


def is_written(arrays: Arrays, work: Work, unit: Unit, checksum: int) -> bool:
    """Whether the output of a unit is what a progress file says of it."""
    found = 0
    for rows, _, heads, _ in work.pieces(unit):
        for written in (arrays.out, arrays.lse):
            if written is not None:
                shape = (heads.stop - heads.start, rows[1] - rows[0], *written.shape[3:])
                values = np.empty(shape, written.dtype)
                written.read(unit.batch, heads, rows, values)
                found = _checksum(values, found)
    return found == checksum


def _checksum(values: Array, before: int) -> int:
    for of_head in values:
        before = zlib.crc32(bytes_of(np.ascontiguousarray(of_head)), before)
    return before
