"""A run's encoder on a hub of models: weights as transformers has them, every setting, tables, and a card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from depthjepa.commands.convert import convert
from depthjepa.faults import BadInput
from depthjepa.formats.opening import is_hub_id
from depthjepa.formats.weights import Which
from depthjepa.logbook import write_whole
from depthjepa.report.card import model_card
from depthjepa.runs import read_run


def push(
    run: Path, repo: str, *, licence: str, which: Which = "target", private: bool = False, out: Path | None = None
) -> list[str]:
    """Publish one encoder of a run as the model `repo` (`OWNER/NAME`); return in words what was written.

    With `out` all of it is written to that folder, and nothing is sent: to look at the card, to add to it, and to see
    what paths of this machine `config.yaml` names. `load_encoder(repo)` reads what was published. Who is sending, and
    where to, the hub's own variables say (`HF_TOKEN`, `HF_ENDPOINT`).

    Raises `BadInput` where the run, or the encoder in transformers' layout, cannot be made, and where the hub refuses.
    """
    if not is_hub_id(repo):
        raise BadInput(f"{repo} is no name of a model on a hub: give OWNER/NAME, which is no path here")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError as fault:
        raise BadInput("publishing needs huggingface_hub: pip install 'depthjepa[teachers]'") from fault
    found = read_run(run)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        said = convert(str(run), folder, "hf", which)
        shutil.copyfile(run / "config.yaml", folder / "config.yaml")
        for table in sorted((run / "probes").glob("*.json")):
            (folder / "probes").mkdir(exist_ok=True)
            shutil.copyfile(table, folder / "probes" / table.name)
        write_whole(folder / "README.md", model_card(found, repo, licence, which))
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if out is not None:
            if out.exists() and (out.is_file() or any(out.iterdir())):
                raise BadInput(f"{out} exists already: give a new path")
            shutil.copytree(folder, out, dirs_exist_ok=True)
            return [*said[:1], f"{out}: {', '.join(files)}; nothing was sent"]
        hub = huggingface_hub.HfApi()
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            sent = hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"{found.name}, {which} encoder")
        except Exception as fault:
            named = (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError)  # ValueError: of the card
            if not isinstance(fault, named) and not type(fault).__module__.startswith("httpx"):  # no connection
                raise
            reason = str(fault).strip().splitlines()[0]
            raise BadInput(f"{repo} was not published: {reason}") from fault
    return [*said[:1], f"{repo}: {', '.join(files)}", str(sent)]
