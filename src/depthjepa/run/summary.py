"""What a run says of itself: the figures of its summary as it goes, and pictures for the report at its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from depthjepa import runtime
from depthjepa.evaluation.pictures import write_pictures
from depthjepa.logbook import RunFolder
from depthjepa.method import parameter_count
from depthjepa.run.state import State


def finish(state: State, folder: RunFolder, images: int) -> dict[str, Any]:
    """Write what the report shows of a run on so many images, and return its summary."""
    write_pictures(state.method, state.config, state.target, folder, state.device)
    return so_far(state, folder, images) | {"finished": True}


def so_far(state: State, folder: RunFolder, images: int) -> dict[str, Any]:
    """The summary of the steps that were done; empty before the first one that was logged.

    Not finished even at the last step: that is for `finish` to say, once the pictures are written.
    """
    records = [record for record in folder.metrics() if "loss" in record]
    if not records:
        return {}
    tail = records[-max(1, len(records) // 10) :]
    losses = {key: sum(record[key] for record in tail) / len(tail) for key in tail[-1] if key.startswith("loss")}
    speeds = sorted(record["images_per_second"] for record in records)
    return {
        "name": state.config.name,
        "finished": False,
        "steps": state.step,
        "of_steps": state.steps,
        "epochs": state.step / state.epoch_steps,
        "images": images,
        "data": state.read,
        "seconds": records[-1]["seconds"],
        "images_per_second": speeds[len(speeds) // 2],
        "waiting_share": sum(record["waiting_share"] for record in records) / len(records),
        "peak_memory_bytes": runtime.peak_memory_bytes(state.device),
        "parameters": parameter_count(state.method),
        "encoder_parameters": parameter_count(state.method.encoder),
        **losses,
        "depth_floor": None if state.target is None else state.target.floor,
        "teacher": None if state.target is None else asdict(state.target.teacher.describe()),
        "skipped_images": len(state.skipped),
        "skipped_names": list(state.skipped)[:20],
    }
