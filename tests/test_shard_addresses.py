"""Shards at addresses: what is listed and read, the index, the cache of pieces, the order of an epoch, faults."""

from __future__ import annotations

import errno
import http.server
import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from depthjepa.data.config import DataConfig
from depthjepa.data.layouts import shards as layout
from depthjepa.data.layouts.shards import TarShards
from depthjepa.data.loading import TrainingBatches, open_source, view_batches
from depthjepa.data.order import Mixture, epoch_order
from depthjepa.data.samples import Source
from depthjepa.data.shards import index, pieces, remote
from depthjepa.data.shards.place import Folder, Piece, Shard
from depthjepa.distributed import Ranks
from depthjepa.faults import BadInput, OutOfReach
from depthjepa.masks import MaskConfig

PIECE = 8192  # bytes, in these tests: two or three samples
PIECES = 32  # of the training shards


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pieces, remote, layout):
        monkeypatch.setattr(module, "BYTES", PIECE)
    remote.listed.cache_clear()
    index.index_of.cache_clear()


def picture(number: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")  # 1.6 kB
    return content.getvalue()


def write(path: Path, count: int, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number in range(first, first + count):
            for name, content in ((f"{number:04d}.png", picture(number)), (f"{number:04d}.cls", b"%d" % (number % 3))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return path


def written(root: Path) -> Path:
    for number in range(4):
        write(root / f"train-00{number}.tar", 20, 20 * number)
    write(root / "val" / "0.tar", 9, 100)
    (root / "classes.txt").write_text("bird\ncat\ndog\n")
    return root


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    """An address that holds the shards of `tmp_path/shards`."""
    root = written(tmp_path / "shards")
    fs = fsspec.filesystem("memory")
    fs.put(str(root), "/bucket", recursive=True)
    yield "memory://bucket"
    fs.rm("/", recursive=True)


def opened(root: str | Path, split: str = "train", **keys: object) -> TarShards:
    source = open_source(DataConfig(root=str(root), **keys), split)
    assert isinstance(source, TarShards)
    return source


def assert_same(one: Source, other: Source) -> None:
    assert len(one) == len(other) and one.classes == other.classes
    for number in range(len(one)):
        mine, theirs = one.sample(number), other.sample(number)
        assert torch.equal(mine.image, theirs.image) and (mine.name, mine.label) == (theirs.name, theirs.label)


# what is at an address


def test_shards_at_an_address_are_those_of_the_folder(tmp_path: Path, memory: str) -> None:
    for split in ("train", "val"):
        assert_same(opened(memory, split), opened(tmp_path / "shards", split))
    source = opened(memory, classes=("dog",), images_per_class=5)
    assert_same(source, opened(tmp_path / "shards", classes=("dog",), images_per_class=5))
    assert source.name == memory and opened(f"{memory}/").name_of(0) == "train-000.tar:0000.png"
    assert_same(pickle.loads(pickle.dumps(source)), source)


@pytest.mark.parametrize(
    ("root", "images", "first"),
    [
        ("memory://bucket/train-{000..002}.tar", 60, "train-000.tar:0000.png"),
        ("memory://bucket/train-{001..003}.tar", 60, "train-001.tar:0020.png"),
        ("memory://bucket/train-0{0..0}{2..3}.tar", 40, "train-002.tar:0040.png"),
        ("memory://bucket/train-001.tar", 20, "train-001.tar:0020.png"),
    ],
)
def test_shards_are_named_by_numbers_or_one_by_one(memory: str, root: str, images: int, first: str) -> None:
    source = opened(root)
    assert (len(source), source.name_of(0)) == (images, first)
    assert source.classes == ("bird", "cat", "dog")


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (
            "memory://nowhere",
            "memory://nowhere lists no tar shards; name them, as in memory://nowhere/train-{000..099}",
        ),
        ("memory://bucket/train-{000..009}.tar", "there is no memory://bucket/train-004.tar"),
        ("memory://bucket/train-{a,b}.tar", r"braces hold two numbers"),
        ("memory://bucket/other.tar", "there is no memory://bucket/other.tar"),
        ("nonsense://bucket", "Protocol not known: nonsense"),
        ("gs://bucket", r"pip install 'depthjepa\[remote\]'"),
    ],
)
def test_what_is_not_there_is_said(memory: str, root: str, said: str) -> None:
    root = root.replace("{a,b}", "{a..b}")
    with pytest.raises(BadInput, match=said.replace("{0", "[{]0").replace("099}", "099[}]")):
        opened(root)


def test_a_cache_that_is_smaller_than_what_is_shuffled_is_refused(memory: str) -> None:
    with pytest.raises(BadInput, match=r"data.cache_gib=1 is too little for data.window_gib=1: .* data.cache_gib=1.5"):
        opened(memory, cache_gib=1)


# the order of an epoch


def window(count: int) -> float:
    """`data.window_gib` of so many pieces."""
    return (count + 0.5) * PIECE / 2**30


def test_an_epoch_goes_through_windows_of_pieces(memory: str) -> None:
    source = opened(memory, window_gib=window(3))
    of_sample = source.pieces()
    assert of_sample is not None
    total = int(of_sample.max()) + 1
    assert total == PIECES and source.window == 3
    orders = [epoch_order(source, seed=0, epoch=epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(80))
        places = [np.flatnonzero(of_sample[order] == piece) for piece in range(total)]
        first, last = np.array([p[0] for p in places]), np.array([p[-1] for p in places])
        at_once = [int(((first <= now) & (last >= now)).sum()) for now in range(80)]
        assert max(at_once) <= 3 + 2, "more pieces are in use than are shuffled"
        assert np.mean(at_once[10:-10]) > 1.5, "samples of several pieces are mixed"
        assert (np.abs(np.diff(order)) > 1).mean() > 0.5
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert np.array_equal(epoch_order(source, 0, 1), orders[1])
    assert not np.array_equal(epoch_order(source, 1, 1), orders[1])


def test_all_of_a_folder_is_shuffled(tmp_path: Path, memory: str) -> None:
    source = opened(tmp_path / "shards")
    assert source.pieces() is None
    plain = epoch_order(Mixture([source, source]), 0, 0)
    assert sorted(plain) == list(range(160))


@pytest.mark.parametrize("weights", [None, [1.0, 1.0], [3.0, 1.0], [1.0, 12.0]])
def test_an_address_is_mixed_with_a_folder(tmp_path: Path, memory: str, weights: list[float] | None) -> None:
    far, near = opened(memory, window_gib=window(3)), opened(tmp_path / "shards", "val")
    mixed = Mixture([far, near], weights)
    order = epoch_order(mixed, seed=0, epoch=0)
    assert len(order) == len(mixed) == 89
    counts = np.bincount(order, minlength=89)
    if weights is None:
        assert (counts == 1).all()
    else:
        share = weights[0] / sum(weights)
        assert abs(counts[:80].sum() - share * 89) < 1
        assert counts[:80].max() - counts[:80].min() <= 1 and counts[80:].max() - counts[80:].min() <= 1
    of_near = np.flatnonzero(order >= 80)
    assert of_near[0] < 30 and of_near[-1] > 59, "what is near comes all along"
    of_sample = far.pieces()
    assert of_sample is not None
    used = of_sample[order[order < 80]]
    first, last = ([np.flatnonzero(used == piece)[end] for piece in np.unique(used)] for end in (0, -1))
    passes = -(-int(counts[:80].sum()) // 80)
    if passes == 1:
        assert max(((np.array(first) <= now) & (np.array(last) >= now)).sum() for now in range(len(used))) <= 5


def training(source: Source, **keys: object) -> TrainingBatches:
    data = DataConfig(image_size=16, flip=True, memory_gib=0)
    given = {"data": data, "masks": MaskConfig(), "grid": (8, 8), "seed": 3, "batch_size": 8, "steps": 14}
    return TrainingBatches(source=source, **{**given, **keys})


def test_ranks_workers_and_a_resumed_start_change_nothing(memory: str) -> None:
    source = opened(memory, window_gib=window(3))
    whole = list(training(source))
    resumed = list(training(source, start_step=9))
    shares = [list(training(source, ranks=Ranks(rank, 2))) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        if number >= 9:
            assert torch.equal(batch.images, resumed[number - 9].images)


# the index


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    looked_through: list[str] = []
    scan = index.scanned

    def noting(file: object, name: str) -> object:
        looked_through.append(name.rpartition("/")[2])
        return scan(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "scanned", noting)
    monkeypatch.setattr(index, "KEPT_FROM", 10)
    return looked_through


def anew() -> None:
    """As a process that starts."""
    index.index_of.cache_clear()
    remote.listed.cache_clear()


@pytest.mark.parametrize("where", ["folder", "address"])
def test_an_index_is_kept_and_changed_shards_alone_are_looked_through(
    tmp_path: Path, memory: str, where: str, monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    looked_through = counted(monkeypatch)
    root, folder = memory if where == "address" else tmp_path / "shards", tmp_path / "shards"
    before = opened(root)
    assert sorted(looked_through) == [f"train-00{number}.tar" for number in range(4)]
    anew()
    looked_through.clear()
    assert_same(opened(root), before)
    assert not looked_through

    write(folder / "train-002.tar", 21, 200)
    if where == "address":
        fsspec.filesystem("memory").put(str(folder / "train-002.tar"), "/bucket/train-002.tar")
    anew()
    assert len(opened(root)) == 81 and opened(root).name_of(60) == "train-002.tar:0220.png"
    assert looked_through == ["train-002.tar"]
    assert_same(opened(root), opened(folder))

    (kept,) = (cache_folder / "indexes").glob("*.npz") if where == "folder" else (None,)
    if kept is not None:
        for damage in (b"", kept.read_bytes()[:1000], b"PK nonsense"):
            kept.write_bytes(damage)
            anew()
            looked_through.clear()
            assert len(opened(root)) == 81 and len(looked_through) == 4


def test_an_index_beside_the_shards_comes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    looked_through = counted(monkeypatch)
    root = written(tmp_path / "shards")
    status, said, _ = call("prepare", "index", root)
    assert status == 0
    size = sum(path.stat().st_size for path in root.rglob("*.tar"))
    assert said.strip() == f"5 shards, 89 images, {size / 1e9:.3g} GB: index in {root / index.NAME}"
    shutil.rmtree(cache_folder / "indexes")
    fs = fsspec.filesystem("memory")
    fs.put(str(root), "/uploaded", recursive=True)
    try:
        looked_through.clear()
        anew()
        assert_same(opened("memory://uploaded"), opened(root))
        assert not looked_through, "tags differ, but each shard ends where the index says"

        # Another shard of the same size, whose last image lies elsewhere.
        write(tmp_path / "other.tar", 19, 300)
        content = (tmp_path / "other.tar").read_bytes()
        content += bytes((root / "train-001.tar").stat().st_size - len(content))
        fs.pipe_file("/uploaded/train-001.tar", content)
        shutil.rmtree(cache_folder / "indexes")
        anew()
        assert len(opened("memory://uploaded")) == 79
        assert looked_through == ["train-001.tar"]
    finally:
        fs.rm("/", recursive=True)


def test_an_index_is_written_where_it_is_asked_for(
    tmp_path: Path, memory: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    status, said, _ = call("prepare", "index", memory, "--out", tmp_path / "made.npz")
    assert status == 0 and f"index in {tmp_path / 'made.npz'}" in said
    assert call("prepare", "index", memory)[1].strip().endswith("index in memory://bucket/shards.index.npz")
    assert fsspec.filesystem("memory").cat_file("/bucket/shards.index.npz") == (tmp_path / "made.npz").read_bytes()
    status, _, said = call("prepare", "index", "scenes")
    assert status == 2 and "only tar shards have an index" in said


# pieces


def test_what_is_kept_stays_within_its_bound_and_each_piece_is_fetched_once(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 12 * PIECE
    source = opened(memory, window_gib=window(3), cache=str(tmp_path / "kept"), cache_gib=bound / 2**30)
    fetched: list[tuple[int, int]] = []
    fetch = remote.Address._fetched

    def noting(self: remote.Address, shard: Shard, first: int, length: int) -> bytes:
        fetched.append((int(shard.name[6:9]), first))
        kept = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file())
        assert kept <= bound
        return fetch(self, shard, first, length)

    monkeypatch.setattr(remote.Address, "_fetched", noting)
    assert sum(len(batch.index) for batch in training(source, steps=10)) == 80
    assert len(fetched) == len(set(fetched)) == PIECES
    list(training(source, steps=20, start_step=10))
    assert PIECES + 12 <= len(fetched) <= 2 * PIECES, "at most twelve pieces of the first epoch are still there"


def test_a_few_images_of_many_pieces_are_fetched_by_themselves(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_SPARSE", 3)
    source = opened(memory)
    lengths: list[int] = []
    fetch = remote.Address._fetched

    def noting(self: remote.Address, shard: Shard, first: int, length: int) -> bytes:
        lengths.append(length)
        return fetch(self, shard, first, length)

    monkeypatch.setattr(remote.Address, "_fetched", noting)
    few = torch.cat([batch.images for batch in view_batches(source, (20, 24), limit=8)])
    assert len(lengths) == 8 and max(lengths) < 2000
    lengths.clear()
    every = torch.cat([batch.images for batch in view_batches(source, (20, 24))])
    assert len(lengths) == PIECES and torch.equal(every[5::10], few)


def test_pieces_that_others_remove_are_fetched_again(tmp_path: Path) -> None:
    cache = pieces.PieceCache(tmp_path / "kept", 1000)
    shard, piece, asked = Shard("a.tar", 500, "x"), Piece(100, 300), []

    def fetch() -> bytes:
        asked.append(1)
        return bytes(range(256)) + bytes(44)

    for _ in range(2):
        assert cache.read("s3://b", shard, piece, 110, 5, fetch) == bytes([10, 11, 12, 13, 14])
    assert len(asked) == 1
    shutil.rmtree(tmp_path / "kept")
    assert cache.read("s3://b", shard, piece, 399, 1, fetch) == b"\0" and len(asked) == 2
    cache.read("s3://b", Shard("a.tar", 500, "replaced since"), piece, 110, 5, fetch)
    assert len(asked) == 3


def _read_slowly(folder: Path, log: Path) -> None:
    def fetch() -> bytes:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return b"content"

    cache = pieces.PieceCache(folder, 1000)
    assert cache.read("s3://b", Shard("a.tar", 9, ""), Piece(0, 7), 3, 4, fetch) == b"tent"


def test_processes_that_want_one_piece_fetch_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_slowly, args=(tmp_path / "kept", tmp_path / "log")) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "x"
    assert [path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()] == ["0-7"]


def test_a_disk_that_is_full_costs_older_pieces_and_then_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, shard = pieces.PieceCache(tmp_path / "kept", 10**6), Shard("a.tar", 10**6, "")
    room, write_bytes = 250, Path.write_bytes

    def limited(self: Path, content: bytes) -> int:
        taken = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file())
        if taken + len(content) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", limited)
    for number in range(4):
        assert cache.read("s3://b", shard, Piece(100 * number, 100), 100 * number, 2, lambda: bytes(100)) == bytes(2)
    with pytest.raises(OutOfReach, match=r"no room for 0 MB in .*kept: make some, or name another folder"):
        cache.read("s3://b", shard, Piece(0, 300), 0, 1, lambda: bytes(300))


# servers


class Server:
    """A web server of a folder that fails as it is told to."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[int] = []  # statuses of the next requests; then all is well
        self.asked: list[str] = []
        self.ranges = True
        self.absent = 404
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                server.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
                path = folder / self.path.strip("/")
                status = server.answers.pop(0) if server.answers else 200 if path.is_file() else server.absent
                content = path.read_bytes() if status == 200 else b""
                length = len(content)
                if status == 200 and server.ranges and (asked := self.headers.get("Range")):
                    first, last = asked.removeprefix("bytes=").split("-")
                    content, status = content[int(first) : int(last) + 1], 206
                    length = len(content)
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Server]:
    server = Server(written(tmp_path / "shards"))
    yield server
    server.server.shutdown()
    server.server.server_close()


NAMES = "train-{000..003}.tar"


def test_a_web_server_is_read_by_ranges(tmp_path: Path, web: Server) -> None:
    source = opened(f"{web.root}/{NAMES}")
    web.asked.clear()
    assert_same(source, opened(tmp_path / "shards"))
    assert len(web.asked) == PIECES and all(" bytes=" in each for each in web.asked)


def test_a_server_that_fails_is_asked_again(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    source = opened(f"{web.root}/{NAMES}")
    web.answers = [503, 429, 500]
    assert source.sample(0).image.shape == (3, 20, 24)
    assert not web.answers


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "access is refused .*403"), (401, "access is refused .*401"), (404, "is gone, or shorter")],
)
def test_a_server_that_refuses_is_not_asked_again(web: Server, status: int, said: str) -> None:
    source = opened(f"{web.root}/{NAMES}")
    web.answers = [status]
    with pytest.raises(BadInput, match=said):
        source.sample(0)
    assert not web.answers


def test_a_server_that_does_not_say_what_is_not_there_is_read(web: Server) -> None:
    """As S3 does without the right to list."""
    web.absent = 403
    assert opened(f"{web.root}/{NAMES}").sample(0).image.shape == (3, 20, 24)
    with pytest.raises(BadInput, match="access is refused"):
        opened(f"{web.root}/train-{{004..005}}.tar")


def test_a_server_without_ranges_is_refused(web: Server) -> None:
    web.ranges = False
    with pytest.raises(BadInput, match="gives no ranges of bytes"):
        opened(f"{web.root}/{NAMES}")


def test_a_server_that_is_gone_is_out_of_reach_at_the_end_of_the_patience(
    web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(f"{web.root}/{NAMES}", window_gib=window(2))
    batches = iter(training(source, steps=10))
    next(batches)
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.05)
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(OutOfReach, match=r"train-00\d.tar could not be read for 0 s, the last time because of"):
        list(batches)


def test_a_shard_that_became_shorter_is_named(memory: str) -> None:
    source = opened(memory)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/train-003.tar", fs.cat_file("/bucket/train-003.tar")[:20000])
    with pytest.raises(BadInput, match=r"memory://bucket/train-003.tar is cut short: bytes .* had 71680 when it was"):
        source.sample(79)


def test_a_folder_and_its_address_are_told_apart() -> None:
    assert Folder(Path("a")) != Folder(Path("b")) and hash(Folder(Path("a"))) == hash(Folder(Path("a")))


# a teacher


def test_a_teacher_reads_shards_at_an_address(
    tmp_path: Path, memory: str, call: Callable[..., tuple[int, str, str]]
) -> None:
    for name, root in (("near", str(tmp_path / "shards")), ("far", memory)):
        out = ("--teacher", "depthfm-tiny", "guidance.teacher_size=32", "data.image_size=32", "--out", tmp_path / name)
        status, said, errors = call("teach", "--data", root, *out)
        assert status == 0, errors
        assert "89 images" in said
    near, far = (sorted(path for path in (tmp_path / name).rglob("*.bin")) for name in ("near", "far"))
    assert [path.name for path in near] == [path.name for path in far] and len(near) > 3
    assert [path.read_bytes() for path in near] == [path.read_bytes() for path in far]
