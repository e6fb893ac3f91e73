"""On a real cluster of processes: bytes that move, a worker that is killed, the bits that come out."""

import os
import signal
import time

import dask
import dask.array as da
import numpy as np
import pytest
from support import assert_same_bits

from subquad import Banded, Global, Random, streaming
from subquad.dask import attention, attention_backward

distributed = pytest.importorskip("distributed")

N, CHUNK, D = 1 << 13, 1 << 10, 32
ROW = 4 * D  # bytes of a row of float32


@pytest.fixture(scope="module")
def client():
    """Two workers of one thread each, and a scheduler that believes bytes to be dear.

    It moves a chunk where it thinks that moving saves time, by default at 100 MB/s and with half a second for a task
    that it has not seen yet. The chunks here are a hundredth of real ones, so the bandwidth is too.
    """
    dear = {
        "distributed.scheduler.bandwidth": "1 MB",
        "distributed.scheduler.unknown-task-duration": "5ms",
        "distributed.scheduler.work-stealing": False,
    }
    with (
        dask.config.set(dear),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


def block(seed, number, pause, chunk):
    time.sleep(pause)
    return np.random.default_rng([seed, number]).standard_normal((chunk, D), dtype=np.float32)


def lazy(seed, pause=0.0, chunk=CHUNK):
    """N rows, every chunk a function of its number: it can be made again where it was lost."""
    parts = [
        da.from_delayed(dask.delayed(block)(seed, number, pause, chunk), (chunk, D), np.float32)
        for number in range(N // chunk)
    ]
    return da.concatenate(parts)


def halves(client, seed, chunk=CHUNK):
    """The same array in memory, its first half on one worker and the second on the other."""
    client.wait_for_workers(2, timeout=60)  # one may have been killed by another test
    whole, workers = lazy(seed, chunk=chunk), sorted(client.scheduler_info()["workers"])
    cuts = [(0, N // 2), (N // 2, N)]
    parts = [client.persist(whole[a:b], workers=[w]) for w, (a, b) in zip(workers, cuts, strict=True)]
    distributed.wait(parts)
    found = client.persist(da.concatenate(parts))
    distributed.wait(found)
    return found


def moved(client):
    """Bytes that the workers have received from one another so far."""
    of_each = client.run(lambda dask_worker: sum(entry["total"] for entry in dask_worker.transfer_incoming_log))
    return sum(of_each.values())


def bytes_of(client, *lazy):
    """What computing some arrays moves between the workers."""
    before = moved(client)
    kept = client.persist(list(lazy))
    distributed.wait(kept)
    return moved(client) - before, kept


@pytest.mark.parametrize(
    ("pattern", "necessary"),
    [
        (Banded(100), 2 * 100 * 2 * ROW),  # keys and values, each way
        (Banded((300, 0)), 300 * 2 * ROW),  # the past alone
        (streaming(4, 256), (4 * 4 + 255) * 2 * ROW),  # four chunks of rows want the sinks, one the window's rest
        # 4 rows to the other half; there 4 results and their sums, already merged; and the columns to 4 chunks
        (Global(range(4)), 4 * ROW + 4 * (ROW + 4) * 4 + 4 * 4 * 2 * ROW),
    ],
)
def test_no_more_bytes_move_than_the_pattern_makes_necessary(client, pattern, necessary):
    query, key, value = (halves(client, seed) for seed in range(3))
    found, (out,) = bytes_of(client, attention(query, key, value, pattern))
    assert 0 < found <= 1.2 * necessary
    with dask.config.set(scheduler="synchronous"):
        expected = attention(*(lazy(seed) for seed in range(3)), pattern).compute()
    assert_same_bits(out.compute(), expected)


def test_few_chunks_stay_where_they_lie(client):
    """Dask spreads tasks over the workers, wherever their chunks lie, if it takes them for the roots of a graph: those
    of one name, more than twice the threads, that depend on fewer than five others. Here six slices cut four chunks."""
    arrays = [halves(client, seed, N // 4) for seed in range(3)]
    found, _ = bytes_of(client, attention(*arrays, Banded(100)))
    assert 0 < found <= 1.2 * (2 * 100 * 2 * ROW)


def test_a_backward_moves_halos_and_their_gradients(client):
    query, key, value = (halves(client, seed) for seed in range(3))
    pattern = Banded(100)
    _, (out, lse) = bytes_of(client, *attention(query, key, value, pattern, return_lse=True))
    found, grads = bytes_of(client, *attention_backward(out, query, key, value, out, lse, pattern))
    assert 0 < found <= 1.2 * 2 * (2 * 100 * 2 * ROW)
    with dask.config.set(scheduler="synchronous"):
        arrays = [lazy(seed) for seed in range(3)]
        out, lse = attention(*arrays, pattern, return_lse=True)
        expected = dask.compute(*attention_backward(out, *arrays, out, lse, pattern))
    for grad, right in zip(grads, expected, strict=True):
        assert_same_bits(grad.compute(), right)


def test_nothing_is_lost_when_a_worker_is_killed_half_way(client):
    arrays, pattern = [lazy(seed, pause=0.05) for seed in range(3)], Banded(100) | Global([0]) | Random(2, 1)
    out = client.persist(attention(*arrays, pattern))
    futures = distributed.futures_of(out)
    while sum(future.done() for future in futures) < len(futures) // 4:
        time.sleep(0.01)
    assert not all(future.done() for future in futures)
    victims = client.run(os.getpid)
    address = sorted(victims)[0]
    os.kill(victims[address], signal.SIGKILL)
    found = out.compute()
    assert address not in client.scheduler_info()["workers"]
    with dask.config.set(scheduler="synchronous"):
        expected = attention(*(lazy(seed) for seed in range(3)), pattern).compute()
    assert_same_bits(found, expected)
