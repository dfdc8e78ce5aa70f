"""Runs that read their shards from S3: a server of the protocol on the loopback, as a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthjepa import training
from depthjepa.data.shards import index, remote
from tiny_runs import SETTINGS, Call, differences, free_port, lines, metrics, start, wait_for, weights

pytest.importorskip("moto.server", reason="pip install 'depthjepa[development]'")
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
IMAGES, SHARDS = 100, 3
STEPS = 40


@dataclass
class S3:
    """A server, its address and its log."""

    process: subprocess.Popen[bytes]
    endpoint: str
    log: Path

    def gets(self) -> list[str]:
        """The requests for parts of tars so far."""
        return re.findall(r'"GET (\S+\.tar) HTTP', self.log.read_text())


@contextlib.contextmanager
def server(log: Path, **told: str) -> Iterator[S3]:
    port = free_port()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **told},
        )
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield S3(process, f"http://127.0.0.1:{port}", log)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()


def shard(first: int) -> bytes:
    """About 7 MB: one piece."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(first, first + IMAGES):
            for name, data in (
                (f"{number:05d}.jpg", PICTURES[number % 8]),
                (f"{number:05d}.cls", b"%d" % (number % 2)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def noise(number: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG", quality=97)
    return content.getvalue()


PICTURES = [noise(number) for number in range(8)]


def use(endpoint: str, patch: pytest.MonkeyPatch) -> None:
    import s3fs

    for key, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        patch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server that holds `s3://pictures/all`."""
    import s3fs

    with server(tmp_path_factory.mktemp("s3") / "log") as found, pytest.MonkeyPatch.context() as patch:
        use(found.endpoint, patch)
        fs = s3fs.S3FileSystem()
        fs.mkdir("pictures")
        for number in range(SHARDS):
            fs.pipe_file(f"pictures/all/train-{number:03d}.tar", shard(number * IMAGES))
        fs.pipe_file("pictures/all/val-000.tar", shard(10_000)[: 512 * 400] + bytes(10240))
        yield found


@pytest.fixture(autouse=True)
def as_at_the_start(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    use(s3.endpoint, monkeypatch)
    remote.listed.cache_clear()
    index.index_of.cache_clear()


ROOT = "s3://pictures/all/train-{000..002}.tar"
ONE_RUN = (*SETTINGS, "train.checkpoint_every=10", "data.memory_gib=0", "data.window_gib=0.05", "data.cache_gib=0.08")


def command(out: Path, steps: int = STEPS, *more: str, root: str = ROOT) -> tuple[str, ...]:
    return ("train", "photos", "--out", str(out), f"data.root={root}", *ONE_RUN, f"train.steps={steps}", *more)


def test_a_run_from_s3_goes_on_to_the_same_bits_and_asks_for_much_at_a_time(
    s3: S3, tmp_path: Path, call: Call, stop_after: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = SHARDS * len(shard(0)) / 1e6
    assert call("prepare", "index", ROOT, "--out", tmp_path / "index.npz")[0] == 0
    looked_through = len(s3.gets())
    assert looked_through <= 1.1 * size
    assert call(*command(tmp_path / "whole", 30))[0] == 0
    cold = len(s3.gets()) - looked_through
    assert cold == SHARDS, "each piece once"
    assert cold <= 1.1 * size and size / cold > 1, "megabytes a request"

    stop_after(13)  # type: ignore[operator]
    assert call(*command(tmp_path / "parts", 30))[0] == 1
    stop_after(None)  # type: ignore[operator]
    monkeypatch.setenv("DEPTHJEPA_CACHE", str(tmp_path / "another machine"))
    status, _, errors = call(*command(tmp_path / "parts", 30), "--resume")
    assert status == 0, errors
    assert not differences(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    for name in (tmp_path / "whole", tmp_path / "parts"):
        assert (
            "unreadable" not in (name / "summary.json").read_text()
            or '"unreadable": 0' in (name / "summary.json").read_text()
        )


@pytest.mark.slow
def test_a_server_that_is_gone_stops_a_run_where_it_is(
    s3: S3, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(remote, "PATIENCE", 1.0)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    update = training.train_step

    def gone_after_four(state, parts):  # type: ignore[no-untyped-def]
        if state.step == 4:
            s3fs.S3FileSystem.clear_instance_cache()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
            monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        return update(state, parts)

    monkeypatch.setattr(training, "train_step", gone_after_four)
    status, _, said = call(*command(tmp_path / "run", 30))
    assert status == 1
    found = re.search(
        r"s3://pictures/all/train-00\d\.tar could not be read for \d+ s.*stopped at step (\d+) of 30", said
    )
    assert found and "continue with --resume" in said, said
    assert weights(tmp_path / "run")["step"] == int(found[1]) >= 5

    monkeypatch.setattr(training, "train_step", update)
    use(s3.endpoint, monkeypatch)
    assert call(*command(tmp_path / "run", 30), "--resume")[0] == 0
    assert call(*command(tmp_path / "whole", 30))[0] == 0
    assert not differences(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_shard_cut_short_is_named_before_anything_is_written(s3: S3, tmp_path: Path, call: Call) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.pipe_file("pictures/cut/train-000.tar", shard(0)[:1_000_000])
    status, _, said = call(*command(tmp_path / "run", root="s3://pictures/cut"))
    assert status == 2
    assert re.search(r"s3://pictures/cut/train-000\.tar is cut short or damaged at 0\d+\.jpg", said)
    assert not (tmp_path / "run").exists()
    status, _, said = call(*command(tmp_path / "run", root="s3://pictures/nowhere"))
    assert status == 2 and "s3://pictures/nowhere lists no tar shards" in said
    status, _, said = call(*command(tmp_path / "run", root="s3://no-such-bucket/a.tar"))
    assert status == 2 and "there is no s3://no-such-bucket/a.tar" in said


def test_wrong_credentials_are_said_at_once(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with server(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="20") as strict:
        use(strict.endpoint, monkeypatch)
        fs = s3fs.S3FileSystem()
        fs.mkdir("private")
        with pytest.raises(PermissionError):  # the first twenty requests need no credentials
            for _ in range(20):
                fs.pipe_file("private/train-000.tar", b"content")
        begun = time.monotonic()
        status, _, said = call(*command(tmp_path / "run", root="s3://private"))
        assert status == 2 and time.monotonic() - begun < 30
        assert re.search(r"s3://private: access is refused \(\w+: .+\)", said), said


@pytest.mark.slow
def test_a_run_that_is_killed_and_a_server_that_sleeps_change_no_bit(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(*command(tmp_path / "whole"))
    assert whole.wait() == 0, whole.communicate()
    monkeypatch.setenv("DEPTHJEPA_CACHE", str(tmp_path / "empty"))
    out, killed = tmp_path / "run", start(*command(tmp_path / "run", STEPS, "data.workers=2"))
    wait_for(lambda: lines(out / "metrics.jsonl") >= 14, killed)
    s3.process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    assert killed.poll() is None
    s3.process.send_signal(signal.SIGCONT)
    wait_for(lambda: lines(out / "metrics.jsonl") >= 24, killed)
    killed.kill()
    killed.wait()
    going_on = start(*command(out, STEPS, "data.workers=2"), "--resume")
    assert going_on.wait() == 0, going_on.communicate()
    one, other = weights(tmp_path / "whole"), weights(out)
    assert one.pop("config")["data"]["workers"] != other.pop("config")["data"]["workers"]
    assert not differences(one, other)
