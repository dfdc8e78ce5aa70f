"""Shapes in the signatures are checked while the tests run; places of the data that tests may read."""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

# Libraries come before the hook: what is first imported under it has bytecode of its own; compiling torch takes 7 s.
for library in ("torch", "torchvision.transforms.v2", "pydantic.dataclasses", "rich.progress", "beartype.vale"):
    importlib.import_module(library)
install_import_hook("depthjepa", "beartype.beartype")

SHARED = Path(os.environ.get("DEPTHJEPA_DATA", Path(__file__).parents[1].parent / "shared"))


def place(part: str) -> Path:
    folder = SHARED / part
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; DEPTHJEPA_DATA names the folder that holds {part}/")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Photographs and RGB-D pairs."""
    return place("data")


@pytest.fixture(scope="session")
def parity() -> Path:
    """Numbers of the reference implementations."""
    return place("parity")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder: one of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DEPTHJEPA_CACHE", str(folder))
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; its exit status, standard output and standard error."""
    from depthjepa import cli  # after the import hook

    def run_command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["depthjepa", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run_command


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Ask the runs of a test to stop after the step of that number (None: no longer)."""
    from depthjepa import training

    update, wanted = training.train_step, [None]

    def watched(state: Any, parts: Any) -> dict[str, Any]:
        if state.step + 1 == wanted[0]:
            signal.raise_signal(signal.SIGTERM)
        figures: dict[str, Any] = update(state, parts)
        return figures

    def set_step(number: int | None) -> None:
        wanted[0] = number

    monkeypatch.setattr(training, "train_step", watched)
    return set_step
