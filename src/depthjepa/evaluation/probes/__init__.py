"""Probes and diagnostics of an encoder as rows of one table: each task has a file of its own, and a row in `table`."""

from depthjepa.evaluation.probes.running import (
    classification_tables,
    probe,
    probe_config,
    probe_run,
    run_tasks,
    write_probe,
)
from depthjepa.evaluation.probes.task import Probe, Subject

__all__ = [
    "Probe",
    "Subject",
    "classification_tables",
    "probe",
    "probe_config",
    "probe_run",
    "run_tasks",
    "write_probe",
]
