# SPDX-License-Identifier: BSD-3-Clause
"""Processes that fill stores and are killed: run by `test_processes.py` in a process of its own.

The driver holds no store and no threads, so it may fork its writers, which starts them in a
millisecond instead of the seconds that a fresh interpreter takes. It reads commands as lines of
JSON and answers each with one line.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _filling as filling
import numpy as np

from skpool.exceptions import StoreError
from skpool.stores import HELD, MINE, FeatureStore, MemoryCache

SPACE = "5a" * 16
BLOCK_ROWS = 32


def fork(run, *arguments):
    """Run a function in a forked child and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        run(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def end(pid):
    """Wait for a child and return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Log:
    """A file to which children append keys, one write per record, so that kills leave it whole."""

    def __init__(self, path):
        self.path = path

    def append(self, keys):
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, keys.tobytes())
        os.close(fd)

    def keys(self):
        data = self.path.read_bytes() if self.path.exists() else b""
        return np.frombuffer(data, dtype="V16")


def litter(path):
    """Return what should not be in a store that this process alone has open."""
    with sqlite3.connect(path / "index.sqlite") as connection:
        named = {file for (file,) in connection.execute("SELECT file FROM blocks")}
        claims = connection.execute("SELECT count(*) FROM claims").fetchone()[0]
    connection.close()
    found = sorted(set(os.listdir(path / "blocks")) ^ named)
    if claims:
        found.append(f"{claims} claims")
    if len(os.listdir(path / "owners")) != 1:
        found.append("lock files")
    return found


def writer(path, keys, ragged, log):
    store = FeatureStore(path, block_bytes=BLOCK_ROWS * 4 * filling.DIM)
    filling.fill(store, SPACE, keys, ragged=ragged, batch=8, on_put=log.append)
    store.close()


def check(path, keys, ragged, log):
    """Reopen a store and return what is wrong with it and how many reported rows are lost."""
    with FeatureStore(path) as store:
        wrong = litter(path)
        found, rows, lengths = store.read(SPACE, keys)
        if not filling.is_true(keys[found], rows, lengths, ragged):
            wrong.append("wrong rows")
        lost = int((~store.held(SPACE, log.keys())).sum())
    return wrong, lost


def unfinished(path):
    """Return how many files a kill has left that the index does not name."""
    with sqlite3.connect(path / "index.sqlite") as connection:
        try:
            named = {file for (file,) in connection.execute("SELECT file FROM blocks")}
        except sqlite3.OperationalError:
            named = set()
    connection.close()
    return len(set(os.listdir(path / "blocks")) - named)


def kills(n_kills, seed):
    """Kill writers at random moments; check what is left, then let one finish."""
    choose = random.Random(seed)
    result = {"kills": 0, "stores": 0, "unfinished": 0, "most_lost": 0, "wrong": []}
    while result["kills"] < n_kills:
        with tempfile.TemporaryDirectory() as name:
            path, ragged = Path(name) / "store", result["stores"] % 2 == 1
            keys = filling.make_keys(1500, seed + result["stores"])
            result["stores"] += 1
            for _ in range(min(5, n_kills - result["kills"])):
                log = Log(Path(name) / f"log{result['kills']}")
                pid = fork(writer, path, keys, ragged, log)
                time.sleep(choose.uniform(0.0, 0.12))
                os.kill(pid, signal.SIGKILL)
                if end(pid) != -signal.SIGKILL:
                    continue
                result["kills"] += 1
                if (path / "blocks").exists() and (path / "index.sqlite").exists():
                    result["unfinished"] += unfinished(path)
                wrong, lost = check(path, keys, ragged, log)
                result["wrong"] += wrong
                result["most_lost"] = max(result["most_lost"], lost)
            finish(path, keys, ragged, result)
    return result


def finish(path, keys, ragged, result):
    with FeatureStore(path) as store:
        filling.fill(store, SPACE, keys, ragged=ragged)
        found, rows, lengths = store.read(SPACE, keys)
        if not (found.all() and filling.is_true(keys, rows, lengths, ragged)):
            result["wrong"].append("incomplete after the last fill")


def maintainer(path, other, keys, ragged):
    """Merge, put again and prune, for ever."""
    choose = random.Random(0)
    with FeatureStore(path, block_bytes=BLOCK_ROWS * 4 * filling.DIM) as store:
        while True:
            store.merge(other)
            part = keys[choose.randrange(len(keys)) :][:40]
            store.put(SPACE, part, *filling.compute(part, ragged))
            store.flush()
            store.prune()
            store.prune(choose.randrange(50_000))


def maintenance_kills(n_kills, seed):
    """Kill processes that merge and prune; check what is left."""
    choose = random.Random(seed)
    result = {"kills": 0, "wrong": [], "held": []}
    for number in range(n_kills):
        with tempfile.TemporaryDirectory() as name:
            path, other, ragged = Path(name) / "store", Path(name) / "other", number % 2 == 1
            keys = filling.make_keys(500, seed + number)
            with FeatureStore(other, block_bytes=BLOCK_ROWS * 4 * filling.DIM) as store:
                store.put(SPACE, keys, *filling.compute(keys, ragged))
            pid = fork(maintainer, path, other, keys, ragged)
            time.sleep(choose.uniform(0.02, 0.25))
            os.kill(pid, signal.SIGKILL)
            result["kills"] += end(pid) == -signal.SIGKILL
            wrong, _ = check(path, keys, ragged, Log(Path(name) / "none"))
            result["wrong"] += wrong
            with FeatureStore(path) as store, FeatureStore(other) as source:
                result["wrong"] += store.verify() + source.verify()
                result["held"].append(int(store.held(SPACE, keys).sum()))
                store.merge(source)
                found, rows, lengths = store.read(SPACE, keys)
                if not (found.all() and filling.is_true(keys, rows, lengths, ragged)):
                    result["wrong"].append("incomplete after the last merge")
    return result


def racer(path, keys, seed, log):
    order = np.random.default_rng(seed).permutation(len(keys))

    def computed(mine):
        log.append(mine)
        time.sleep(0.001)

    with FeatureStore(path, block_bytes=BLOCK_ROWS * 4 * filling.DIM) as store:
        filling.fill(store, SPACE, keys[order], on_computed=computed)
        found, rows, lengths = store.read(SPACE, keys)
        if not (found.all() and filling.is_true(keys, rows, lengths, False)):
            raise RuntimeError("not everything is there")


def race(n_processes, n_killed, seed):
    """Let processes fill one store at once, killing some of them in the middle."""
    with tempfile.TemporaryDirectory() as name:
        path, log = Path(name) / "store", Log(Path(name) / "log")
        keys = filling.make_keys(1000, seed)
        pids = [fork(racer, path, keys, seed + i, log) for i in range(n_processes)]
        if n_killed:
            while len(log.keys()) < 300:
                time.sleep(0.005)
        for pid in pids[:n_killed]:
            os.kill(pid, signal.SIGKILL)
        codes = [end(pid) for pid in pids]
        computed = log.keys()
        with FeatureStore(path) as store:
            left = litter(path)
            n_held = int(store.held(SPACE, keys).sum())
        n_distinct = len(np.unique(computed.view("S16")))
    return {
        "codes": codes,
        "computed": len(computed),
        "distinct": n_distinct,
        "held": n_held,
        "litter": left,
    }


def fork_with_open_store():
    """Fork a process that has a store open, with rows that wait; both go on using it."""
    keys = filling.make_keys(30)
    rows = filling.vectors(keys)
    with tempfile.TemporaryDirectory() as name:
        store = FeatureStore(name)
        store.put(SPACE, keys[:10], rows[:10])
        store.claim(SPACE, keys[20:])

        def child():
            expected = [0] * 10 + [1] * 10 + [2] * 10
            # What waits in the parent is claimed by nobody: it was put without a claim.
            if store.claim(SPACE, keys[10:]).tolist() != expected[10:]:
                raise RuntimeError("the child sees other claims than the parent made")
            if store.held(SPACE, keys).any():
                raise RuntimeError("the child sees what waits in the parent")
            store.put(SPACE, keys[10:20], rows[10:20])
            store.close()

        code = end(fork(child))
        store.put(SPACE, keys[20:], rows[20:])
        store.close()
        found, read, lengths = store.read(SPACE, keys)
        good = bool(found.all()) and filling.is_true(keys, read, lengths, False)
        n_rows = store.info()["n_rows"][SPACE]
        store.close()
    return {"code": code, "good": good, "rows": n_rows}


def orphan():
    """Kill a process whose forked child lives on: its claims must end nevertheless."""
    keys = filling.make_keys(10)
    with tempfile.TemporaryDirectory() as name:
        readable, writable = os.pipe()

        def parent():
            store = FeatureStore(name)
            store.claim(SPACE, keys)
            grandchild = fork(time.sleep, 60)
            os.write(writable, grandchild.to_bytes(8, "little"))
            time.sleep(60)

        pid = fork(parent)
        grandchild = int.from_bytes(os.read(readable, 8), "little")
        with FeatureStore(name) as store:
            before = store.claim(SPACE, keys).tolist()
            os.kill(pid, signal.SIGKILL)
            end(pid)
            alive = store.wait(SPACE, keys, timeout=10)
            after = store.claim(SPACE, keys)
        os.kill(grandchild, signal.SIGKILL)
    return {"before": before, "waited": alive.tolist(), "all_mine": bool((after == MINE).all())}


def fork_under_threads(n_forks):
    """Fork again and again while threads use the store."""
    keys = filling.make_keys(400)
    with tempfile.TemporaryDirectory() as name, FeatureStore(name, block_bytes=2000) as store:

        def child(i):
            with store:
                filling.fill(store, f"{i:02x}", keys[:20])

        with ThreadPoolExecutor(2) as pool:
            fills = [pool.submit(filling.fill, store, SPACE, keys[::step]) for step in (1, -1)]
            codes = [end(fork(child, i)) for i in range(n_forks)]
            for done in fills:
                done.result()
        found, rows, lengths = store.read(SPACE, keys)
        good = bool(found.all()) and filling.is_true(keys, rows, lengths, False)
        n_rows = store.info()["n_rows"]
    return {"codes": codes, "good": good, "rows": n_rows}


def unprivileged(path, expected, closed):
    """Use a store as a user who may not write there."""
    keys = np.arange(8, dtype=np.int64).view("V16")

    def child():
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with FeatureStore(path) as store:
            if store.read("5a", keys)[0].tolist() != expected:
                raise RuntimeError("other rows than expected")
            if store.claim("5a", keys[:1]).tolist() != [HELD]:
                raise RuntimeError("what is held can be claimed as such")
            refused(f"{path} can only be read (Permission denied)", store.claim, "5a", keys)
            refused("can only be read", store.put, "5a", keys[2:], np.ones((2, 3)))
            refused("can only be read", store.release, "5a", keys)
        for directory in (path, closed):
            refused("cannot be made (Permission denied)", FeatureStore, f"{directory}/new")

    return end(fork(child))


def refused(text, call, *arguments):
    """Raise unless a call raises StoreError with some text."""
    try:
        call(*arguments)
    except StoreError as error:
        if text in str(error):
            return
        raise
    raise RuntimeError(f"{call} was not refused")


def fork_with_cache():
    """Fork a process with a cache in memory: the child has its rows and none of its claims."""
    keys = filling.make_keys(3)
    cache = MemoryCache(10**6)
    cache.put(SPACE, keys[:1], filling.vectors(keys[:1]))
    cache.claim(SPACE, keys[1:2])

    def child():
        if cache.claim(SPACE, keys).tolist() != [HELD, MINE, MINE]:
            raise RuntimeError("the child has other claims")

    code = end(fork(child))
    return {"code": code, "status": cache.claim(SPACE, keys).tolist()}


COMMANDS = {
    "fork_with_cache": fork_with_cache,
    "unprivileged": unprivileged,
    "fork_under_threads": fork_under_threads,
    "fork_with_open_store": fork_with_open_store,
    "kills": kills,
    "maintenance_kills": maintenance_kills,
    "orphan": orphan,
    "race": race,
}

if __name__ == "__main__":
    # Newer Pythons warn of forks in a process with threads, which is what is tried here.
    warnings.simplefilter("ignore", DeprecationWarning)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(COMMANDS[name](*arguments)), flush=True)  # noqa: T201
