"""Loggers of other people's services: what they hold after a kill and a resume has no gap and nothing twice."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depthjepa import cost, training
from depthjepa.faults import BadInput, RunStopped
from depthjepa.logbook import RunFolder
from depthjepa.loggers.mlflow import MlflowLogger
from depthjepa.loggers.sent import Sent
from depthjepa.loggers.wandb import WandbLogger
from tiny_images import write_pairs
from tiny_runs import GUIDED, Call, recipe_file, run

Rows = dict[str, list[tuple[int, float]]]  # of every figure its steps and values, in the order they lie there
SERVICES = ("tensorboard", "wandb", "mlflow")
SETTINGS = (*GUIDED, "train.steps=8", "train.probe_every=4", "train.checkpoint_every=1000")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    for name in SERVICES:
        pytest.importorskip({"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboard"}[name])


def in_tensorboard(path: Path) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "loggers" / "tensorboard"))
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_records(path: Path) -> list[Any]:
    """What `wandb sync` would send, in its order: one file for each time that the run was begun."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((path / "loggers" / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            found.append(Record())
            found[-1].ParseFromString(data)
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, in blocks of 32 KiB, after W&B's header of 7 bytes.

    Each piece has a checksum, its length and its type: whole, first, middle or last.
    """
    start, parts = 7, b""
    while start + 7 <= len(content):
        if (left := 32768 - start % 32768) < 7:  # too little for a header: filled up with zeros
            start += left
            continue
        length, kind = struct.unpack_from("<HB", content, start + 4)
        piece = content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):
            yield parts + piece
        parts = b"" if kind in (1, 4) else parts + piece


def in_wandb(path: Path) -> Rows:
    found: Rows = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            # One word: a picture's or a table's sides are nested below its name.
            named = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            row = {key: json.loads(value) for key, value in named.items() if "/" not in key}
            for key, value in row.items():
                if not key.startswith("_") and isinstance(value, (int, float)):
                    found.setdefault(key, []).append((row["_step"], value))
    return found


def in_mlflow(path: Path) -> Rows:
    import mlflow

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(tracking_uri=(path / "loggers" / "mlflow").resolve().as_uri())
    of_run = Sent(path, "mlflow").run
    assert of_run is not None
    keys = client.get_run(of_run).data.metrics
    return {key: [(each.step, each.value) for each in client.get_metric_history(of_run, key)] for key in keys}


READ: dict[str, Callable[[Path], Rows]] = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


def logged(path: Path) -> Rows:
    """What the run folder has, as a service is to have it."""
    found: Rows = {}
    for record in RunFolder(path).metrics():
        for key, value in record.items():
            if key != "step" and not (key == "epoch" and "probe_score" in record):
                found.setdefault(key, []).append((record["step"], value))
    return found


def same(found: Rows, expected: Rows) -> None:
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        # The clock and the memory go on: what was sent before the stop stays as it was then.
        assert [step for step, _ in found[key]] == [step for step, _ in rows], key
        if key not in ("seconds", "images_per_second", "waiting_share", "peak_memory_bytes"):
            assert [value for _, value in found[key]] == pytest.approx([value for _, value in rows], rel=1e-6), key


@pytest.mark.parametrize(
    "service", [pytest.param(each, marks=pytest.mark.slow if each == "wandb" else ()) for each in SERVICES]
)
def test_a_stopped_and_resumed_run_has_no_gap_and_no_double(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    pairs, folder = write_pairs(tmp_path / "pairs", 12, 6), tmp_path / "run"
    settings = (*SETTINGS, f"train.loggers=[{service}]")
    step = training.train_step

    def without_power(state: Any, parts: Any) -> dict[str, Any]:
        if state.step == 6:  # the newest checkpoint is that of the probe; two steps come after it
            raise RunStopped("the power went out")
        figures: dict[str, Any] = step(state, parts)
        return figures

    with monkeypatch.context() as patch, pytest.raises(RunStopped, match="power"):
        patch.setattr(training, "train_step", without_power)
        run(pairs, folder, *settings)
    run(pairs, folder, *settings, resume=True)
    assert [step for step, _ in READ[service](folder)["loss"]] == list(range(1, 9))
    same(READ[service](folder), logged(folder))
    # A table of a later probe goes there too.
    status, _, said = call("probe", folder, "depth")
    assert status == 0, said
    same(READ[service](folder), logged(folder))
    pictures, text = told(service, folder)
    assert pictures >= {"masks", "features", "guidance"}
    assert "random encoder" in text


def told(service: str, folder: Path) -> tuple[set[str], str]:
    """Names of the pictures, and the text of the table of depth."""
    if service == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "loggers" / "tensorboard"))
        events.Reload()
        begun = events.Tensors("configuration/text_summary")
        assert [each.step for each in begun] == [1, 5] and b"train" in begun[0].tensor_proto.string_val[0]
        (table_of_depth,) = events.Tensors("probes/depth/text_summary")
        return set(events.Tags()["images"]), table_of_depth.tensor_proto.string_val[0].decode()
    if service == "mlflow":
        artifacts = [each for each in (folder / "loggers" / "mlflow").rglob("*") if each.parent.name == "artifacts"]
        (file,) = (folder / "loggers" / "mlflow").rglob("depth.json")
        return {each.stem for each in artifacts}, file.read_text()
    media = list((folder / "loggers" / "wandb").rglob("media/*/**/*.*"))
    (file,) = (each for each in media if each.name.endswith(".table.json") and each.parent.name == "probes")
    return {each.name.partition("_")[0] for each in media}, file.read_text()


@pytest.mark.slow
def test_wandb_gets_the_rows_of_a_run_that_goes_on_after_its_pictures(tmp_path: Path) -> None:
    """Each picture and table is one step more to W&B unless it is told which step they are of."""
    import matplotlib.pyplot as plt

    logger = WandbLogger(tmp_path)
    logger.begin({}, {}, 0)
    logger.log({"step": 4, "loss": 0.4})
    for number in range(3):
        logger.picture(f"picture-{number}", plt.figure(figsize=(1, 1)), 4)
    logger.table("depth", {"columns": [], "rows": [{"name": "run"}]}, 2)  # of an older checkpoint
    for step in range(5, 9):
        logger.log({"step": step, "loss": step / 10})
    logger.close()
    assert in_wandb(tmp_path)["loss"] == [(step, step / 10) for step in range(4, 9)]


def test_mlflow_gets_what_a_server_that_did_not_answer_has_not_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    with monkeypatch.context() as patch, pytest.raises(RunStopped):
        patch.setattr("mlflow.MlflowClient.log_batch", no_answer)
        MlflowLogger(tmp_path).begin({"seed": 3}, {}, 0)
    logger = MlflowLogger(tmp_path)
    logger.begin({"seed": 3}, {}, 2)
    client, of_run = logger._open()
    assert client.get_run(of_run).data.params == {"seed": "3"}
    assert in_mlflow(tmp_path) == {"loss": [(1, 0.5), (2, 0.25)]}


def no_answer(*_: object, **__: object) -> None:
    import mlflow

    raise mlflow.MlflowException("no answer")


def test_wandb_keeps_one_run_and_gets_the_summary(tmp_path: Path) -> None:
    pairs, folder = write_pairs(tmp_path / "pairs", 12, 6), tmp_path / "run"
    run(pairs, folder, "train.steps=2", "train.loggers=[wandb]")
    kinds = [record.WhichOneof("record_type") for record in wandb_records(folder)]
    assert {"run", "history", "exit"} <= set(kinds)
    begun = [record.run for record in wandb_records(folder) if record.WhichOneof("record_type") == "run"]
    assert {each.run_id for each in begun} == {Sent(folder, "wandb").run}
    assert {each.project for each in begun} == {"depthjepa"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_missing_library_is_named_before_anything_is_written(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, service, None)
    recipe = recipe_file(tmp_path / "recipe.yaml", write_pairs(tmp_path / "pairs", 12, 6))
    status, _, said = call("train", recipe, f"train.loggers=[{service}]", "--out", tmp_path / "run")
    assert status == 2
    assert f"train.loggers={service} needs its library: pip install 'depthjepa[loggers]'" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_probe_where_the_library_is_missing_writes_its_table_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthjepa.loggers.logger import check_libraries, tell_table

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.warns(UserWarning, match=r"depth is in .* not sent: .*depthjepa\[loggers\]"):
        tell_table(["run_folder", "mlflow"], tmp_path, "depth", {"rows": []}, 3)
    with pytest.raises(BadInput):
        check_libraries(["mlflow"])


def test_a_server_that_does_not_answer_stops_the_run_in_one_line_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    settings = ("train.steps=2", "train.loggers=[mlflow]")
    recipe = recipe_file(tmp_path / "recipe.yaml", write_pairs(tmp_path / "pairs", 12, 6), *settings)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        status, _, said = call("train", recipe, "--out", tmp_path / "run")
    assert status != 0 and "Traceback" not in said
    assert "train.loggers=mlflow: " in said and "go on with --resume once it answers" in said
    status, _, said = call("train", recipe, "--out", tmp_path / "run", "--resume")
    assert status == 0, said
    same(in_mlflow(tmp_path / "run"), logged(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
def test_a_process_that_is_killed_loses_nothing_and_sends_nothing_twice(service: str, tmp_path: Path) -> None:
    recipe = recipe_file(
        tmp_path / "recipe.yaml",
        write_pairs(tmp_path / "pairs", 12, 6),
        "train.steps=200",
        "train.checkpoint_every=25",
        f"train.loggers=[{service}]",
    )
    folder = tmp_path / "run"
    asked = [sys.executable, "-m", "depthjepa", "train", str(recipe), "--out", str(folder)]
    # W&B tells child processes of its own background process; a training has one for itself.
    env = {key: value for key, value in os.environ.items() if "WANDB" not in key} | {"WANDB_MODE": "offline"}
    for kill_at in (30, 90):
        process = subprocess.Popen(asked + ["--resume"] * folder.exists(), env=env)
        while process.poll() is None and not any(each["step"] >= kill_at for each in RunFolder(folder).metrics()):
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*asked, "--resume"], check=True, env=env)
    deadline = time.monotonic() + 30
    while len(READ[service](folder)["loss"]) < 200 and time.monotonic() < deadline:
        time.sleep(1)
    assert [step for step, _ in READ[service](folder)["loss"]] == list(range(1, 201))
    same(READ[service](folder), logged(folder))
