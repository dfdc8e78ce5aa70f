"""Probes and diagnostics of an encoder as rows of one table: each task has a file of its own, and a row in `table`."""

from depthjepa.evaluation.probes.running import (
    classification_tables,
    judged_config,
    probe,
    probe_config,
    probe_run,
    run_tasks,
    write_probe,
)
from depthjepa.evaluation.probes.task import Judged, Probe, Subject

__all__ = [
    "Judged",
    "Probe",
    "Subject",
    "classification_tables",
    "judged_config",
    "probe",
    "probe_config",
    "probe_run",
    "run_tasks",
    "write_probe",
]
