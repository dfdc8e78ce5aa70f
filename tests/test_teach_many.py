"""Processes that come, die and come again make the cache that one makes; what they leave behind is taken over."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depthjepa import shared_work
from depthjepa.commands import teach as teaching
from depthjepa.config.run_config import RunConfig
from depthjepa.data.samples import Batch
from depthjepa.faults import BadInput, RunStopped
from depthjepa.guidance.teachers import cache, cache_files
from depthjepa.guidance.teachers.cache import open_cache
from depthjepa.guidance.teachers.cache_files import Facts, checksum, claim_file, part_file, read_facts, together_of
from depthjepa.locks import Holder
from depthjepa.losses import Latents
from depthjepa.shared_work import claimed, sweep
from test_teach import SETTINGS, MeanColours, content
from tiny_images import write_flat
from tiny_runs import Call, run, tiny

FORKED = multiprocessing.get_context("fork")  # a process of its own in no time: torch is there already

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes that fork, and what /proc says of them")


class Slow(MeanColours):
    """Takes its time, so that a kill finds a part that is being computed, and writes down what it was asked."""

    def __init__(self, seconds: float, asked: Path | None = None) -> None:
        super().__init__()
        self._seconds, self._asked = seconds, asked

    def batch_latents(self, batch: Batch, cells: tuple[int, int]) -> Latents:
        time.sleep(self._seconds)
        if self._asked is not None:
            with self._asked.open("a") as file:
                file.write("".join(f"{name} {os.getpid()}\n" for name in batch.names))
        return super().batch_latents(batch, cells)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_files, "TOGETHER", 8)
    monkeypatch.setattr(teaching, "load_network", lambda guidance: MeanColours())
    monkeypatch.setattr(teaching, "PAUSES", (0.02, 0.2))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of fifty images, which are seven parts."""
    return tiny(write_flat(tmp_path / "flat", 50), *SETTINGS)


def teach(config: RunConfig, out: Path, shard: tuple[int, int] = (0, 1)) -> Facts:
    return teaching.teach(config, out, shard=shard, say=lambda _: None)


def start(
    config: RunConfig, out: Path, shard: tuple[int, int] = (0, 1), seconds: float = 0.0, asked: Path | None = None
) -> BaseProcess:
    """Teach in a process of its own, with a teacher that takes so long for a batch; its exit code is 0 or a fault."""

    def work() -> None:
        teaching.load_network = lambda guidance: Slow(seconds, asked)
        teach(config, out, shard)

    process = FORKED.Process(target=work)
    process.start()
    return process


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for a minute"
        time.sleep(0.002)


def claims(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.claim"))


def of_another_machine() -> str:
    """The claim of a process that may live or not: it cannot be told from here."""
    holder = replace(Holder.this(), host="elsewhere", boot="another")
    return json.dumps({"holder": asdict(holder), "processes": "", "number": "1"})


@pytest.mark.parametrize("kills", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_three_that_are_killed_at_random_and_come_again_make_the_cache_of_one(kills: int, tmp_path: Path) -> None:
    chance = np.random.default_rng(kills)
    config = tiny(write_flat(tmp_path / "flat", 50 if kills < 100 else 400), *SETTINGS)
    teach(config, tmp_path / "one")
    three = tmp_path / "three"
    at_work = {number: start(config, three, (number, 3), seconds=0.03) for number in range(3)}
    ends = []
    for _ in range(kills):
        time.sleep(float(chance.uniform(0, 0.12)))
        number = int(chance.integers(3))
        at_work[number].kill()
        at_work[number].join()
        ends.append(at_work[number].exitcode)
        at_work[number] = start(config, three, (number, 3), seconds=0.03)
    for process in at_work.values():
        process.join()
        ends.append(process.exitcode)
    assert set(ends) == {0, -signal.SIGKILL} and ends[-3:] == [0, 0, 0]
    assert content(three) == content(tmp_path / "one")
    assert not claims(three)
    assert len(open_cache(three).read(["0000.png"])) == 1


def test_a_folder_that_becomes_a_cache_while_it_is_looked_at_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_by_another(folder: Path, but: object) -> bool:
        (folder / "cache.json").write_text("{}")
        return False

    monkeypatch.setattr(cache, "is_free_of_files", made_by_another)
    cache.refuse_other(tmp_path)
    monkeypatch.setattr(cache, "is_free_of_files", lambda *_: False)
    (tmp_path / "cache.json").unlink()
    with pytest.raises(BadInput, match="holds no cache"):
        cache.refuse_other(tmp_path)


def test_one_share_after_the_other_and_one_alone_helps(config: RunConfig, tmp_path: Path) -> None:
    """Each returns when all is done: the first does the share of the second, which finds nothing to do."""
    teach(config, tmp_path / "one")
    for shard in ((0, 2), (1, 2)):
        assert teach(config, tmp_path / "two", shard).crops is not None
    assert content(tmp_path / "two") == content(tmp_path / "one")
    with pytest.raises(BadInput, match="--shard 2/2: the first of 2 parts is 0/2, the last 1/2"):
        teach(config, tmp_path / "two", (2, 2))


def test_the_share_of_a_killed_one_is_done_by_another(config: RunConfig, tmp_path: Path) -> None:
    teach(config, tmp_path / "one")
    killed = start(config, tmp_path / "two", (1, 2), seconds=0.2)
    until(lambda: part_file(tmp_path / "two", 3).exists() and bool(claims(tmp_path / "two")))
    killed.kill()
    killed.join()
    assert [file.name for file in claims(tmp_path / "two")] == ["000004.claim"]
    teach(config, tmp_path / "two", (0, 2))
    assert content(tmp_path / "two") == content(tmp_path / "one") and not claims(tmp_path / "two")


def test_two_at_once_compute_no_part_twice_and_both_see_the_end(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "cache", tmp_path / "asked"
    teach(config, folder)
    before = content(folder)
    for file in (folder / "parts").iterdir():
        file.unlink()
    meeting, fill = FORKED.Barrier(2), teaching.fill_cache

    def together(*arguments: Any) -> None:
        meeting.wait()
        fill(*arguments)

    monkeypatch.setattr(teaching, "fill_cache", together)
    both = [start(config, folder, seconds=0.1, asked=asked) for _ in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0 and content(folder) == before
    names, processes = zip(*map(str.split, asked.read_text().splitlines()), strict=True)
    assert sorted(names) == [f"{index:04}.png" for index in range(50)]
    assert set(processes) == {str(process.pid) for process in both}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ((), ""),
        (("guidance.teacher_size=128",), "another teacher or size: size="),
        (("data.root=OTHER",), "other images"),
    ],
)
def test_of_two_that_begin_at_once_one_makes_the_cache(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: tuple[str, ...], said: str
) -> None:
    """Both have found that there is none; two that want the same both end well, else one of them is told."""
    write_flat(tmp_path / "other", 20)
    settings = [text.replace("OTHER", str(tmp_path / "other")) for text in other]
    configs = (config, tiny(tmp_path / "flat", *SETTINGS, *settings))
    meeting, faults = FORKED.Barrier(2), FORKED.Queue()
    monkeypatch.setattr(teaching, "_refuse_small_disk", lambda *_: meeting.wait())

    def work(asked: RunConfig) -> None:
        try:
            teach(asked, tmp_path / "cache")
        except BadInput as fault:
            faults.put(str(fault))
            sys.exit(2)

    both = [FORKED.Process(target=work, args=(asked,)) for asked in configs]
    for process in both:
        process.start()
    said_of = [faults.get(timeout=60)] if said else []
    for process in both:
        process.join()
    ends = [process.exitcode for process in both]
    assert sorted(map(str, ends)) == (["0", "2"] if said else ["0", "0"])
    assert all(said in text for text in said_of)
    monkeypatch.setattr(teaching, "_refuse_small_disk", lambda *_: None)
    teach(configs[ends.index(0)], tmp_path / "alone")
    assert content(tmp_path / "cache") == content(tmp_path / "alone")


def test_the_command_takes_a_share(config: RunConfig, tmp_path: Path, call: Call) -> None:
    command = ("teach", "--data", config.data.root, "--teacher", "huggingface", "--out", tmp_path / "cache")
    keys = ("guidance.teacher_size=64", "data.image_size=48", "data.crop_scale=[0.5, 1.0]", "model.patch_size=8")
    status, output, _ = call(*command, *keys, "train.threads=1", "--shard", "1/2")
    assert status == 0 and "50 images" in output and "crops cut from the cache" in output
    for shard, said in (("2/2", "--shard 2/2: the first of 2 parts is 0/2, the last 1/2"), ("x", "give I/N, such as")):
        status, _, errors = call(*command, *keys, "--shard", shard)
        assert status == 2 and said in errors


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_shares_are_runs_of_parts_that_are_all_of_them(count: int) -> None:
    parts = 14
    orders = [teaching.in_turn(parts, (), (number, count)) for number in range(count)]
    own = [[*range(number * parts // count, (number + 1) * parts // count)] for number in range(count)]
    assert [part for each in own for part in each] == list(range(parts))
    for order, first, following in zip(orders, own, [*own[1:], own[0]], strict=True):
        assert sorted(order) == list(range(parts)) and order[: len(first)] == first
        if count > 1:
            assert order[len(first) :][: len(following)] == following[::-1]  # and meets whoever does them
    assert teaching.in_turn(parts, {0, 5}, (0, 1)) == [part for part in range(parts) if part not in (0, 5)]


def test_a_claim_that_is_not_renewed_is_taken_over(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    teach(config, folder)
    before = content(folder)
    for part in (2, 5):
        part_file(folder, part).unlink()
        claim_file(folder, part).write_text(of_another_machine())
    os.utime(claim_file(folder, 2), (1, 1))
    process = start(config, folder)
    until(lambda: part_file(folder, 2).exists())
    time.sleep(0.5)
    assert process.is_alive() and not part_file(folder, 5).exists()  # it waits for an owner that may be at work
    process.kill()
    process.join()
    monkeypatch.setattr(shared_work, "STALE", 1.0)
    teach(config, folder)
    assert content(folder) == before and not claims(folder)


def test_a_claim_counts_as_long_as_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a process of which nothing else is known here; many may see at once that another has gone."""
    monkeypatch.setattr(shared_work, "RENEWED", 0.05)
    monkeypatch.setattr(shared_work, "STALE", 0.5)
    monkeypatch.setattr(shared_work, "_has_ended", lambda said: False)
    file = tmp_path / "a.claim"
    with claimed(file) as mine:
        assert mine
        for _ in range(10):
            time.sleep(0.1)
            with claimed(file) as also:
                assert not also
    assert not list(tmp_path.iterdir())
    file.write_text(of_another_machine())
    time.sleep(0.6)
    held, go, done = [], threading.Barrier(8), threading.Barrier(8)

    def want() -> None:
        go.wait()
        with claimed(file) as mine:
            held.append(mine)
            done.wait()

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.count(True) == 1 and not list(tmp_path.iterdir())


def test_whoever_was_taken_for_gone_leaves_the_claim_of_the_next_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.claim"
    with claimed(file) as mine:
        assert mine
        file.write_text(of_another_machine())
    assert file.read_text() == of_another_machine()


def test_what_killed_processes_leave_is_swept_when_it_is_old(tmp_path: Path) -> None:
    dead = FORKED.Process(target=lambda: None)
    dead.start()
    dead.join()
    names = ("old.bin.1234.partial", "new.bin.1234.partial", "old.claim", "new.claim", "000000.bin", "ended.claim")
    for name in names:
        (tmp_path / name).write_text(of_another_machine())
        if name.startswith("old"):
            os.utime(tmp_path / name, (1, 1))
    ended = replace(Holder.this(), process=dead.pid)
    said = {"holder": asdict(ended), "processes": shared_work._processes(), "number": "1"}
    (tmp_path / "ended.claim").write_text(json.dumps(said))
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000000.bin", "new.bin.1234.partial", "new.claim"]


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets the largest size of a file: what is beyond it fails as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size < 0 else size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_a_cache_that_goes_on(
    config: RunConfig, tmp_path: Path, limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(config, tmp_path / "one")
    for size, said in ((100, r"names\.bin"), (2000, r"parts/000000\.bin")):
        limit(size)
        with pytest.raises(RunStopped, match=rf"the disk is full: \S+{said} could not be written; make room and give"):
            teach(config, tmp_path / "two")
        limit(-1)
    assert not claims(tmp_path / "two") and not list(tmp_path.glob("two/**/*.partial"))
    teach(config, tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    monkeypatch.setattr(teaching.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(RunStopped, match=r"the disk is too full: the latents take .* make room and give the command"):
        teach(config, tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_a_beginning_that_was_cut_short_is_gone_on_with(config: RunConfig, tmp_path: Path) -> None:
    teach(config, tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    (two / "names.bin").write_bytes((tmp_path / "one" / "names.bin").read_bytes())
    (two / "stamps.bin.12345678.partial").write_bytes(b"1")
    teach(config, two)
    assert content(two) == content(tmp_path / "one")
    (two / "cache.json").unlink()
    (two / "parts.bin").unlink()
    for file in (two / "parts").iterdir():
        file.unlink()
    (two / "parts").rmdir()
    with pytest.raises(BadInput, match=r"holds the beginning of a cache of other images \(names.bin\): choose another"):
        teach(tiny(write_flat(tmp_path / "other", 20), *SETTINGS), two)


@pytest.mark.slow
def test_a_signal_gives_the_claim_back_wherever_it_comes(config: RunConfig, tmp_path: Path) -> None:
    for turn in range(10):
        process = start(config, tmp_path / f"{turn}", seconds=0.3)
        until(lambda: bool(claims(tmp_path / f"{turn}")))  # noqa: B023  # called here
        time.sleep(0.002 * turn)
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join()
        assert process.exitcode == 1 and not claims(tmp_path / f"{turn}")


def test_a_part_that_was_removed_is_computed_again(config: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    teach(config, folder)
    before, file = content(folder), part_file(folder, 3)
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    names = [f"{index:04}.png" for index in range(50)]
    cached = open_cache(folder)
    assert cached.read(names[:24]).isfinite().all()
    with pytest.raises(
        BadInput, match=rf"{file} does not have the checksum .* images 24 to 31 .* remove this file and"
    ):
        cached.read(names[30:31])
    file.unlink()
    with pytest.raises(BadInput, match=rf"{file} has 0 of 3080 bytes: images 24 to 31 of the cache are damaged"):
        open_cache(folder).read(names)
    teach(config, folder)
    assert content(folder) == before and open_cache(folder).read(names).isfinite().all()


def test_a_part_that_is_there_is_not_replaced(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes late, after a claim was taken over, may have other rounding. Also on a disk without links."""
    teach(config, tmp_path / "cache")
    before = content(tmp_path / "cache")
    late = np.zeros((8, 3, 8, 8), dtype=np.float16)
    cache_files.write_part(tmp_path / "cache", 1, late)
    monkeypatch.setattr("os.link", refused)
    cache_files.write_part(tmp_path / "cache", 1, late)
    assert content(tmp_path / "cache") == before and not list(tmp_path.glob("cache/parts/*.partial"))
    teach(config, tmp_path / "without")
    assert content(tmp_path / "without") == before


def refused(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "no links here")


def test_an_opened_cache_reads_no_part_and_keeps_no_file_open(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped takes no file descriptor, of which a process may have a thousand, and is bounded."""
    teach(config, tmp_path / "cache")
    opened = Path("/proc/self/fd")
    names = [f"{index:04}.png" for index in range(50)]
    whole = open_cache(tmp_path / "cache").read(names)
    cached = open_cache(tmp_path / "cache")
    before = len(list(opened.iterdir()))
    assert not maps(tmp_path / "cache/parts")
    cached.read(names)
    assert len(list(opened.iterdir())) == before and len(maps(tmp_path / "cache/parts")) == 7
    del cached
    monkeypatch.setattr(cache, "MAPPED", 2)
    few = open_cache(tmp_path / "cache")
    assert few.read(names).equal(whole) and few.read(names).equal(whole)
    assert len(maps(tmp_path / "cache/parts")) == 2
    with pytest.raises(ValueError, match="read-only"):
        few.part(0)[:] = 0


def maps(place: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text(errors="replace").splitlines() if f"{place}/" in line]


@pytest.mark.parametrize(
    ("images", "shape", "together"),
    [
        (1_000_000, (4, 32, 32), 1024),  # 8 KiB an image: a thousand files of 8 MiB
        (1_000_000, (4, 64, 64), 256),  # 32 KiB: four thousand
        (1_000_000, (1, 37, 50), 1024),
        (1_000_000, (768, 37, 37), 64),
        (1_080, (4, 32, 32), 64),
        (10_000, (4, 32, 32), 192),
        (1, (1, 1, 1), 64),
    ],
)
def test_parts_are_of_eight_mebibytes_and_some_dozens_at_least(
    images: int, shape: tuple[int, int, int], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert together_of(images, shape) == together


def as_format_1(folder: Path, out: Path, parts: int) -> Path:
    """The cache as earlier versions wrote it, with so many of its parts done."""
    there = open_cache(folder)
    out.mkdir()
    latents = np.concatenate([there.part(part) for part in range(there.facts.parts)])
    listed = [checksum(latents[first : first + 8]) << 1 | 1 for first in range(0, len(latents), 8)]
    latents[8 * parts :] = 0
    latents.tofile(out / "latents.bin")
    np.array([*listed[:parts], *[0] * (len(listed) - parts)], dtype=np.uint64).tofile(out / "parts.bin")
    for name in ("names.bin", "stamps.bin"):
        (out / name).write_bytes((folder / name).read_bytes())
    told = json.loads((folder / "cache.json").read_text()) | {"format": 1}
    (out / "cache.json").write_text(json.dumps(told if parts == len(listed) else told | {"crops": None}))
    return out


def test_a_cache_of_format_1_is_read_and_known_as_before(config: RunConfig, tmp_path: Path) -> None:
    teach(config, tmp_path / "new")
    old = as_format_1(tmp_path / "new", tmp_path / "old", 7)
    names = [f"{index:04}.png" for index in reversed(range(50))]
    cached = open_cache(old)
    assert cached.read(names).equal(open_cache(tmp_path / "new").read(names))
    digest = hashlib.blake2b(json.dumps(cached.facts.made_of, sort_keys=True).encode(), digest_size=16)
    digest.update((old / "names.bin").read_bytes() + (old / "parts.bin").read_bytes())
    assert cached.contents().digest == digest.hexdigest()
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    assert teach(config, old) == read_facts(old)
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before
    run(Path(config.data.root), tmp_path / "run", *SETTINGS, "train.steps=1", f"guidance.cache={old}")
    (old / "latents.bin").write_bytes(b"\1\1" + before["latents.bin"][2:])
    with pytest.raises(BadInput, match="is damaged: images 0 to 7 do not have the checksum that was written; compute"):
        open_cache(old).read(names)


def test_a_cache_of_format_1_that_was_not_finished_is_refused_with_a_way_on(config: RunConfig, tmp_path: Path) -> None:
    teach(config, tmp_path / "new")
    old = as_format_1(tmp_path / "new", tmp_path / "old", 3)
    with pytest.raises(BadInput, match="is not complete: 4 of 7 parts are to be computed yet"):
        open_cache(old)
    with pytest.raises(BadInput, match=r"is a cache of format 1 that was not finished, .* choose another folder, or"):
        teach(config, old)
    (old / "cache.json").write_text((old / "cache.json").read_text().replace('"format": 1', '"format": 3'))
    with pytest.raises(BadInput, match="is a cache of format 3, this version reads 1 and 2"):
        open_cache(old)
