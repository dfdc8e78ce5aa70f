"""The report stands alone, shows what the files say, and compares on equal ground."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from depthjepa.columns import Column, format_column
from depthjepa.drawing import charts, figures, panels, token_figures
from depthjepa.evaluation.probes import table as probes
from depthjepa.faults import BadInput
from depthjepa.report.first_screen import answer, asked_last
from depthjepa.report.page import not_probed, write_report
from depthjepa.report.tables import best_rows, merge_tables, overview
from depthjepa.runs import Run, read_runs

COLUMNS = [
    {"key": "r2_within", "label": "R² within", "unit": "", "better": "higher"},
    {"key": "rmse", "label": "RMSE", "unit": "m", "better": "lower"},
]


def depth_result(own: float, rmse: float, data: str = "scenes:1", random: float = 0.125) -> dict[str, object]:
    rows = [
        {"name": "mean map", "r2_within": 0.0, "rmse": 1.875},
        {"name": "random encoder", "r2_within": random, "rmse": 1.75},
        {"name": "encoder", "r2_within": own, "rmse": rmse},
    ]
    return {"task": "depth", "data": data, "protocol": "A ridge.", "columns": COLUMNS, "rows": rows}


def begin_run(path: Path, name: str, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"name": name, "seed": 0, **config}))
    return path


def photographs(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 24, 32, 3), dtype=np.uint8)


def whole_run(path: Path, name: str, kind: str, own: float, rmse: float) -> Path:
    """A run folder with every part, as a training run and its probes leave it."""
    begin_run(path, name, guidance={"kind": kind}, model={"size": "tiny", "patch_size": 8}, train={"steps": 30})
    random = np.random.default_rng(1)
    for part in ("figures", "probes"):
        (path / part).mkdir()
    (path / "environment.json").write_text(json.dumps({"torch": "2.11.0", "gpu": None}))
    summary = {"name": name, "steps": 30, "seconds": 90.0, "images_per_second": 321.4, "depth_floor": 0.8125}
    (path / "summary.json").write_text(json.dumps({**summary, "loss_depth": 0.40625}))
    records = [{"step": step, "loss_jepa": 1 / step, "loss_depth": 1.0, "lr": 1e-3} for step in range(1, 31)]
    records.append({"step": 30, "probe_score": 0.5})
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "probes/depth.json").write_text(json.dumps(depth_result(own, rmse)))
    context = random.random((2, 3, 4)) < 0.5
    targets = random.random((2, 4, 3, 4)) < 0.2
    tokens = random.normal(size=(2, 3, 4, 8)).astype(np.float32)
    truth = random.random((2, 6, 8)) + 0.1
    latents = random.normal(size=(2, 5, 3, 4))
    np.savez(path / "figures/masks.npz", images=photographs(), context=context, targets=targets)
    np.savez(path / "figures/features.npz", images=photographs(), tokens=tokens, random=-tokens)
    np.savez(path / "figures/guidance.npz", images=photographs(), teacher=latents, predicted=latents / 2)
    np.savez(
        path / "probes/depth.npz",
        images=photographs(),
        truth=truth,
        mean_map=truth.mean(0),
        random=truth[::-1],
        prediction=truth,
    )
    return path


def written(runs: list[Path], out: Path) -> str:
    write_report(runs, out)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        whole_run(root / "a", "guided", "feature", own=0.4375, rmse=1.25),
        whole_run(root / "b", "unguided", "none", own=0.3125, rmse=1.5),
    ]


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(folders, tmp_path_factory.mktemp("page") / "new" / "report.html")


def cells(page: str, row: str) -> list[str]:
    """Cells of the first table row with that name; bold ones are in asterisks."""
    line = next(line for line in page.split("<tr") if re.search(rf"(>|</span>){re.escape(row)}</td>", line))
    marked = line.replace("<b>", "*").replace("</b>", "*")
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", marked)][1:]


def test_page_needs_nothing_but_itself(page: str) -> None:
    assert re.search(r"https?:|<script[^>]* src|<link|@import|url\(", page) is None
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 6 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(page.encode()) < 6_000_000


@pytest.mark.slow
def test_maps_of_own_heads_and_of_gates_have_sections_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(tmp_path / "a", "guided", "pixel", own=0.4375, rmse=1.25)
    before = written([run], tmp_path / "before.html")
    truth = np.random.default_rng(2).random((2, 6, 8)) + 0.1
    truth[0, 0] = np.nan
    np.savez(
        run / "probes/decode.npz", images=photographs(), truth=truth, prediction=truth / 2, mean_map=np.ones((6, 8))
    )
    maps = np.stack([truth, truth / 3])
    np.savez(run / "probes/gates.npz", images=photographs(), truth=truth, names=np.array(["mlp, full", "x"]), maps=maps)
    drawn: list[dict[str, np.ndarray]] = []
    depth_rows = figures.depth_rows
    monkeypatch.setattr(figures, "depth_rows", lambda *given: (drawn.append(given[2]), depth_rows(*given))[1])
    page = written([run], tmp_path / "after.html")
    assert page.count("<img") == before.count("<img") + 2
    for heading in ("Depth as a run&#x27;s own head decodes it", "Why depth decodes or does not"):
        assert heading in page and heading not in before
    _, _, decoded, gates = drawn
    assert list(decoded) == ["guided", "mean map"] and np.array_equal(decoded["guided"], truth / 2, equal_nan=True)
    assert list(gates) == ["mlp, full", "x"] and np.array_equal(gates["x"], truth / 3, equal_nan=True)


def test_heads_with_one_teacher_stand_side_by_side_and_others_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [whole_run(tmp_path / name, name, "feature", 0.5, 1.0) for name in ("a", "b", "c")]
    other = np.ones((2, 1, 3, 4))
    np.savez(runs[2] / "figures/guidance.npz", images=photographs(), teacher=other, predicted=other)
    drawn: list[list[str]] = []
    monkeypatch.setattr(figures, "latent_rows", lambda _i, _t, maps, _n: drawn.append(list(maps)) or Figure())
    written(runs, tmp_path / "page.html")
    assert drawn == [["a", "b"], ["c"]]


def test_input_swap_layers_and_nearest_images_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole_run(tmp_path / "a", "a", "pixel", 0.5, 1.0)
    gates = {"input swap: raw patches": 0.25, "layers: block 1": 0.5, "layers: block 2 (last)": 0.125, "floor: x": 9.0}
    layers = [
        {"name": "a", "block_1": 0.5, "block_2": 0.75},
        {"name": "random encoder", "block_1": 0.0, "block_2": 0.25},
    ]
    for task, rows in (
        ("gates", [{"name": name, "figure": figure} for name, figure in gates.items()]),
        ("guidance-layers", layers),
    ):
        content = {"task": task, "data": "scenes:0", "protocol": "", "columns": [], "rows": rows}
        (run / f"probes/{task}.json").write_text(json.dumps(content))
    found, alike = np.zeros((2, 3, 24, 32, 3), dtype=np.uint8), np.ones((2, 3), dtype=bool)
    arrays = {"found": found, "alike": alike, "random_found": found, "random_alike": ~alike}
    np.savez(run / "probes/knn.npz", images=photographs(), **arrays)
    panels: list[tuple[object, object]] = []
    lines: list[dict[str, list[float]]] = []
    monkeypatch.setattr(charts, "gate_panels", lambda *values: panels.append(values) or Figure())
    monkeypatch.setattr(charts, "layer_curves", lambda values, _: lines.append(values) or Figure())
    page = written([run], tmp_path / "page.html")
    assert panels == [({"a": {"raw patches": 0.25}}, {"a": [0.5, 0.125]})]
    assert lines == [{"a": [0.5, 0.75], "random encoder": [0.0, 0.25]}]
    assert "What the features find alike" in page and "What each block tells" in page


def test_gates_of_two_sets_of_data_are_drawn_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole_run(tmp_path / "a", "a", "pixel", 0.5, 1.0)
    for data, figure in (("indoor", 0.25), ("streets", 0.5)):
        rows = [{"name": "input swap: raw patches", "figure": figure}]
        content = {"task": "gates", "data": data, "protocol": "", "columns": [], "rows": rows}
        (run / f"probes/gates-{data}.json").write_text(json.dumps(content))
    panels: list[tuple[object, object]] = []
    monkeypatch.setattr(charts, "gate_panels", lambda *values: panels.append(values) or Figure())
    page = written([run], tmp_path / "page.html")
    assert panels == [({"a": {"raw patches": figure}}, {}) for figure in (0.25, 0.5)]
    assert "Run a on indoor" in page and "Run a on streets" in page


def test_frames_tell_the_class_of_nearest_images() -> None:
    found = np.zeros((2, 3, 24, 32, 3), dtype=np.uint8)
    alike = np.array([[True, False, True], [False, False, True]])
    figure = token_figures.neighbour_rows(photographs(), {"a": found, "b": found}, {"a": alike, "b": ~alike})
    axes = np.array(figure.axes).reshape(4, 4)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["a", "b", "a", "b"]
    for row, same in enumerate((alike[0], ~alike[0], alike[1], ~alike[1])):
        colours = [to_hex(axis.spines["left"].get_edgecolor()) for axis in axes[row, 1:]]
        assert colours == [token_figures.SAME if each else token_figures.OTHER for each in same]


def test_lines_and_bars_show_their_figures() -> None:
    curves = {"a": [0.5, 0.25], "random encoder": [0.0, 0.125], "b": [0.25, 0.25]}
    (axis,) = charts.layer_curves(curves, "measure").axes
    np.testing.assert_array_equal(np.asarray(axis.get_lines()[0].get_ydata()), [0.5, 0.25])
    accuracies = {name: (np.array(each), np.array(each)) for name, each in curves.items()}
    colours = [panels.run_colour(0), panels.FAINT, panels.run_colour(1)]  # a run has its colour in every picture
    for panel in (axis, *charts.accuracy_curves(accuracies).axes):
        assert [line.get_color() for line in panel.get_lines()] == colours
    figure = charts.gate_panels({"a": {"i": 0.5, "j": -0.25}, "b": {"j": 0.75}}, {"a": [0.25]})
    assert figure is not None
    bars, layers = figure.axes
    widths = [patch.get_width() for patch in bars.patches]
    np.testing.assert_array_equal(widths, [0.5, -0.25, np.nan, 0.75])
    assert [text.get_text() for text in bars.get_yticklabels()] == ["i", "j"]
    assert [list(line.get_ydata()) for line in layers.get_lines()] == [[0.25]]
    assert charts.gate_panels({}, {}) is None


@pytest.mark.slow
def test_accuracies_by_the_epoch_share_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [whole_run(tmp_path / name, name, "feature", own=0.4375, rmse=1.25) for name in ("a", "b")]
    before = written(runs, tmp_path / "before.html")
    for number, run in enumerate(runs):
        rising = np.linspace(0.1, 0.5 + 0.1 * number, 5)
        np.savez(run / "probes/mlp.npz", train=rising, val=rising / 2, random_train=rising / 3, random_val=rising / 4)
    drawn: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
    draw = charts.accuracy_curves
    monkeypatch.setattr(charts, "accuracy_curves", lambda curves: (drawn.append(curves), draw(curves))[1])
    page = written(runs, tmp_path / "after.html")
    assert page.count("<img") == before.count("<img") + 1 and "How a classifier learns on frozen features" in page
    (curves,) = drawn
    assert list(curves) == ["a", "random encoder", "b"] and curves["b"][1][-1] == pytest.approx(0.3)
    panels = draw(curves).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["training images", "validation images"]
    assert list(panels[1].lines[2].get_ydata()) == pytest.approx(100 * curves["b"][1])


@pytest.mark.slow
def test_a_study_shows_its_claims_and_its_arms_as_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    for arm in ("G", "U"):
        for seed in (0, 1):
            whole_run(study / arm / f"seed-{seed}", f"{arm} of seed {seed}", "feature", own=0.4375, rmse=1.25)
    content = {
        "name": "twins",
        "about": "Depth, or <none>",
        "printed": "less than 10 %",
        "arms": {"G": [], "U": []},
        "seeds": [0, 1],
        "columns": [{"key": "depth.r2_within", "label": "R² within images", "better": "higher"}],
        "runs": [
            {"arm": arm, "seed": seed, "figures": {"depth.r2_within": 0.1 * seed + 0.2 * (arm == "G")}}
            for arm, seed in (("G", 0), ("G", 1), ("U", 0))
        ],
        "baselines": [{"name": "random encoder", "figures": {"depth.r2_within": {"mean": 0.05}}}],
        "claims": [{"measure": "depth.r2_within"}],
        "sentences": ["- G is better than U & more."],
    }
    (study / "study.json").write_text(json.dumps(content))
    intervals: list[dict[str, tuple[float, float]]] = []
    draw = charts.arm_dots
    monkeypatch.setattr(charts, "arm_dots", lambda *given: (intervals.append(given[1]), draw(*given))[1])
    page = written([study], tmp_path / "study.html")
    ends = 0.25 + np.array((-1, 1)) * 12.7062 * 0.05  # Student's t of one degree of freedom, times the error
    assert intervals == [{"G": pytest.approx(tuple(ends), abs=1e-4), "U": (0.0, 0.0)}]
    opening = page.split("<section>")[0]
    assert opening.index("G is better than U &amp; more.") < opening.index("<img") < opening.index("<table")
    assert cells(opening, "G") == ["0.250 ± 0.071"] and cells(opening, "U") == ["0.000"]
    assert cells(opening, "random encoder") == ["0.050"]
    assert "The source paper printed:</b> less than 10 %" in page
    assert "Study twins" in page and "G is better than U &amp; more." in page and "Depth, or &lt;none&gt;" in page
    assert "G of seed 0" in page and "U of seed 0" in page and "of seed 1" not in page  # pictures of one seed
    without = written([study / "G/seed-0", study / "U/seed-0"], tmp_path / "runs.html")
    assert page.count("<img") == without.count("<img")  # dots in the place of maps on the first screen
    alone = begin_run(tmp_path / "alone", "alone")
    beside = written([study, alone], tmp_path / "beside.html")
    assert re.search("<h1>study twins, .* and alone</h1>", beside)
    (study / "study.json").write_text("{")
    with pytest.raises(BadInput, match=r"study\.json is damaged"):
        write_report([study], tmp_path / "study.html")


def test_an_arm_has_a_bar_from_end_to_end_and_a_dot_a_run() -> None:
    values = [0.1, 0.3, 0.2, 0.25]
    figure = charts.arm_dots({"G": values, "U": [0.1]}, {"G": (0.08, 0.35), "U": (0.1, 0.1)}, {"x": 0.0}, "R²")
    (axis,) = figure.axes
    assert list(axis.lines[0].get_xdata()) == [0.08, 0.35]
    assert sorted(axis.collections[0].get_offsets()[:, 0]) == sorted(values)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["G", "U"]


@pytest.mark.slow
def test_the_teacher_and_the_error_of_cached_crops_are_told(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "a", "guided", "feature", own=0.4375, rmse=1.25)
    summary = json.loads((run / "summary.json").read_text())
    older = written([run], tmp_path / "older.html")  # a run that did not say
    assert "(teacher) and what those of guided give" in older
    crops = {"crops": 64.0, "correlation": 0.8125, "difference": 0.625}
    summary["teacher"] = {"name": "depthfm", "unit": "latent of log depth", "cached_crops": crops}
    (run / "summary.json").write_text(json.dumps(summary))
    page = written([run], tmp_path / "cached.html")
    assert "(teacher: depthfm, latent of log depth) and what those of guided give" in page
    assert "on 64 crops they correlate with the teacher&#x27;s own at 0.812 and differ by 0.625 deviations" in page
    summary["teacher"]["cached_crops"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    assert "cut from cached latents" not in written([run], tmp_path / "asked.html")


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"size": "small"}], "One run of a small vision transformer with patches of 8 pixels"),
        (
            [{"size": "small", "width": 128, "depth": 4}],
            "One run of a vision transformer 128 wide and 4 deep with patches",
        ),
        ([{"size": "small", "width": 128, "depth": 4}, {"size": "small"}], "2 runs with patches of 8 pixels"),
        ([{"size": "small", "width": 128, "depth": None}], "One run with patches of 8 pixels"),
    ],
)
def test_the_encoder_is_named_by_what_it_is(tmp_path: Path, models: list[dict[str, object]], said: str) -> None:
    paths = [
        begin_run(tmp_path / str(number), f"run {number}", model={"patch_size": 8, **model})
        for number, model in enumerate(models)
    ]
    assert said in written(paths, tmp_path / "report.html")


def test_page_closes_what_it_opens(page: str) -> None:
    for tag in (
        "section",
        "figure",
        "figcaption",
        "table",
        "tr",
        "td",
        "th",
        "div",
        "p",
        "details",
        "summary",
        "pre",
        "b",
    ):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_the_first_screen_answers_shows_a_picture_and_a_table(page: str) -> None:
    first, rest = page.split("<section>", 1)
    opening = first[first.index("<h1>") :]
    assert opening.index("is ahead of") < opening.index("<img") < opening.index("<table") < opening.index("2 runs of")
    assert opening.count("<img") == opening.count("<table") == 1
    titles = re.findall("<h2>(.*?)</h2>", rest)
    assert titles[0].startswith("Depth") and titles[-2:] == ["In numbers", "What was run"]
    assert rest.rindex("<img") < rest.index("<table")


def test_sections_fold_and_the_longest_is_folded_from_the_start(page: str) -> None:
    folds = re.findall(r"<section><details( open)?><summary><h2>(.*?)</h2></summary>", page)
    assert [title for unfolded, title in folds if not unfolded] == ["What was run"]
    assert len(folds) == page.count("<section>") > 3


def test_baselines_stand_once_and_the_best_of_each_column_is_bold(page: str) -> None:
    for part in page.split("In numbers"):  # the first screen, and all figures
        assert cells(part, "mean map") == ["0.000", "1.875"]
        assert cells(part, "random encoder") == ["0.125", "1.750"]
        assert cells(part, "guided") == ["*0.438*", "*1.250*"]
        assert cells(part, "unguided") == ["0.312", "1.500"]
        assert part.count("<td>random encoder</td>") == 1
        assert "R² within&nbsp;↑" in part and "RMSE&nbsp;↓<small>m</small>" in part


def test_page_says_in_words_what_was_run_and_what_came_out(page: str) -> None:
    text = re.sub("<[^>]*>", "", page)
    assert "2 runs of a tiny vision transformer with patches of 8 pixels for 30 steps" in text
    assert "R² within on scenes:1 (depth): guided is ahead of unguided by 0.125" in text
    assert "The best without pretraining, random encoder: guided is ahead of random encoder by 0.312" in text
    assert "One run of each: how much another seed would change is not in these figures." in text
    assert cells(page, "guidance.kind") == ["feature", "none"]
    assert "model.size</td>" not in page  # equal in both runs
    assert "1.5 min" in text and "321" in text and "2.11.0" in text
    assert "0.50" in text  # depth loss over its floor


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "(I-JEPA alone)"),
        ({"loss": {"visible": 0.5, "pixel": 0.25}}, "(I-JEPA with visible term and pixel term)"),
        ({"loss": {"latent": 0, "pixel": 1}}, "(masked patches without latent loss with pixel term)"),
        (
            {"guidance": {"kind": "feature"}, "loss": {"variance": 0.1, "covariance": 0.1, "gaussian": 0.1}},
            "(I-JEPA with feature depth guidance, variance term, covariance term and gaussian term)",
        ),
        (
            {"train": {"objective": "supervised"}},
            "(trained end to end with what depth and labels there are)",
        ),
    ],
)
def test_page_says_which_terms_a_run_was_trained_with(tmp_path: Path, config: dict[str, object], said: str) -> None:
    assert said in written([begin_run(tmp_path / "run", "one", **config)], tmp_path / "page.html")


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    page = written([begin_run(tmp_path / "bare", "bare")], tmp_path / "report.html")
    assert "<img" not in page and re.findall("<h2>(.*?)</h2>", page) == ["In numbers", "What was run"]


def test_runs_with_and_without_parts_share_a_page(folders: list[Path], tmp_path: Path) -> None:
    page = written([begin_run(tmp_path / "bare", "bare"), folders[0]], tmp_path / "report.html")
    assert page.count("<img") == 6 and cells(page, "guided") == ["*0.438*", "*1.250*"]


def test_names_are_escaped(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a", "<script>alert('1')</script> & co")
    (run / "probes").mkdir()
    (run / "probes/depth.json").write_text(json.dumps(depth_result(0.5, 1.0, data='<b x="1">')))
    page = written([run], tmp_path / "report.html")
    assert "<script>alert" not in page and '<b x="1">' not in page
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; co" in page


def test_equal_names_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [begin_run(tmp_path / part, "same") for part in ("one", "two")]
    page = written(runs, tmp_path / "report.html")
    assert all(f"same ({run.name})" in page for run in runs)


def test_faults_of_the_user_are_named(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "run", "run")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report.html"
    for runs, said in (
        ([tmp_path / "missing"], "missing"),
        ([tmp_path / "empty"], "config.yaml"),
        ([run, run], "twice"),
        ([], "at least one"),
    ):
        with pytest.raises(BadInput, match=said):
            write_report(runs, out)
    with pytest.raises(BadInput, match=r"\.html"):
        write_report([run], tmp_path / "report.pdf")
    (run / "probes").mkdir()
    (run / "probes/knn.json").write_text('{"task": ')
    with pytest.raises(BadInput, match=r"knn\.json is damaged"):
        write_report([run], out)
    (run / "probes/knn.json").unlink()
    np.savez(run / "probes/depth.npz", images=photographs(), truth=np.ones((2, 6, 8)))
    with pytest.raises(BadInput, match=r"depth\.npz: there is no array 'prediction'"):
        write_report([run], out)
    assert not out.exists()


def test_other_data_or_protocol_is_another_table() -> None:
    here, there = depth_result(0.5, 1.0), depth_result(0.75, 1.0, data="indoor")
    tables = merge_tables({"a": [here], "b": [there], "c": [depth_result(0.25, 1.5)]})
    assert [(table.data, [row.name for row in table.rows]) for table in tables] == [
        ("scenes:1", ["mean map", "random encoder", "a", "c"]),
        ("indoor", ["mean map", "random encoder", "b"]),
    ]


def test_baselines_that_differ_are_both_shown() -> None:
    (table,) = merge_tables({"a": [depth_result(0.5, 1.0)], "b": [depth_result(0.5, 1.0, random=0.25)]})
    assert [(row.name, row.kind) for row in table.rows] == [
        ("mean map", "baseline"),
        ("random encoder", "baseline"),
        ("random encoder, b", "baseline"),
        ("a", "run"),
        ("b", "run"),
    ]


def test_ties_are_bold_together_and_no_direction_means_no_best() -> None:
    (table,) = merge_tables({"a": [depth_result(0.50001, 1.0)], "b": [depth_result(0.50002, 1.25)]})
    assert best_rows(table, "r2_within") == {"a", "b"}  # as displayed
    assert best_rows(table, "rmse") == {"a"}
    table.columns["rmse"] = Column("rmse", "RMSE", "")
    assert best_rows(table, "rmse") == set()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, None, float("nan"), -0.25], ["0.500", "–", "–", "−0.250"]),
        ([1234, 5], ["1,234", "5"]),
        ([200.0, 100.0], ["200", "100"]),
        ([34.5, 2.25], ["34.50", "2.25"]),
        ([0.0012, 0.0], ["1.2e−03", "0.0e+00"]),
    ],
)
def test_figures_of_a_column_have_equal_decimals(values: Sequence[float | None], expected: list[str]) -> None:
    assert format_column(values) == expected


def test_models_of_equal_width_share_one_basis() -> None:
    random = np.random.default_rng(0)
    tokens = random.normal(size=(2, 3, 4, 16))
    colours = token_figures.principal_colours(
        {"a": tokens, "other": random.normal(size=(2, 6, 8, 16)), "b": tokens + 5}
    )
    np.testing.assert_allclose(colours["a"], colours["b"], atol=1e-9)
    assert colours["other"].shape == (2, 6, 8, 3)
    alone = token_figures.principal_colours({"a": tokens, "b": tokens})
    assert not np.allclose(alone["a"], colours["a"])  # the third model had its say


def test_other_widths_have_their_own_basis() -> None:
    random = np.random.default_rng(0)
    tokens = random.normal(size=(2, 3, 4, 16))
    wide = random.normal(size=(2, 3, 4, 24))
    colours = token_figures.principal_colours({"wide": wide, "a": tokens})
    np.testing.assert_array_equal(colours["a"], token_figures.principal_colours({"a": tokens})["a"])


def test_a_page_with_several_widths_says_so(tmp_path: Path) -> None:
    wide = begin_run(tmp_path / "wide", "wide")
    (wide / "figures").mkdir()
    tokens = np.random.default_rng(0).normal(size=(2, 3, 4, 12))
    np.savez(wide / "figures/features.npz", images=photographs(), tokens=tokens)
    narrow = begin_run(tmp_path / "narrow", "narrow")
    (narrow / "figures").mkdir()
    np.savez(narrow / "figures/features.npz", images=photographs(), tokens=tokens[..., :8])
    assert "colours cannot be compared between widths" in written([wide, narrow], tmp_path / "report.html")
    assert "share one basis and one scale." in written([wide], tmp_path / "report.html")


def test_principal_colours_follow_the_planted_component() -> None:
    planted = np.random.default_rng(0).permutation(24).reshape(2, 3, 4)
    direction = np.zeros(16)
    direction[3] = 1.0
    red = token_figures.principal_colours({"a": planted[..., None] * direction + 2.0})["a"][..., 0]
    inner = (planted > 0) & (planted < 23)  # the percentiles clip the ends
    assert np.corrcoef(red[inner], planted[inner])[0, 1] > 0.9999


def test_colours_are_the_principal_components_of_all_models_together() -> None:
    random = np.random.default_rng(0)
    tokens = {name: random.normal(size=(2, 3, 4, 6)) * np.array([5, 4, 3, 1, 1, 1.0]) for name in ("a", "b")}
    pool = np.concatenate([each.reshape(-1, 6) - each.reshape(-1, 6).mean(0) for each in tokens.values()])
    scores = (pool @ np.linalg.svd(pool)[2].T)[:, :3]
    colours = token_figures.principal_colours(tokens)
    shown = np.concatenate([each.reshape(-1, 3) for each in colours.values()])
    for component, channel in zip(scores.T, shown.T, strict=True):
        inner = (channel > 0) & (channel < 1)
        assert abs(np.corrcoef(component[inner], channel[inner])[0, 1]) > 1 - 1e-9


def test_collapsed_tokens_are_grey() -> None:
    same = np.tile(np.random.default_rng(0).normal(size=16), (2, 3, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(token_figures.principal_colours({"a": same})["a"], 0.5)


def test_a_perfect_model_looks_exactly_like_the_truth() -> None:
    truth = np.random.default_rng(0).random((2, 6, 8)) + 0.1
    truth[0, :2] = np.nan
    maps = {"perfect": truth.copy(), "far": truth / 10}
    figure = figures.depth_rows(photographs(), truth, maps)
    rows = np.array(figure.axes[:8]).reshape(2, 4)
    for row in rows:
        shown = [np.asarray(axis.images[0].get_array()) for axis in row]
        np.testing.assert_array_equal(shown[1], shown[2])
        assert not np.array_equal(shown[1], shown[3])  # a model has no scale of its own
    np.testing.assert_array_equal(np.asarray(rows[0, 1].images[0].get_array())[0, 0], panels.INVALID)
    assert [axis.get_title() for axis in rows[0]] == ["image", "ground truth", "perfect", "far"]
    assert figure.axes[8].texts[0].get_text() == "disparity\n[1/m]"


def test_near_is_bright() -> None:
    shades = figures.colour_disparity(np.array([[0.1, 0.5, 1.0]]), 0.1, 1.0).sum(-1)[0]
    assert shades[0] < shades[1] < shades[2]


def test_masks_show_exactly_their_patches() -> None:
    images = np.full((1, 24, 32, 3), 10, dtype=np.uint8)
    context = np.zeros((1, 3, 4), dtype=bool)
    context[0, 1, 2] = True
    figure = figures.masks_figure(images, context, ~context[:, None])
    seen = np.asarray(figure.axes[1].images[0].get_array())[..., 0] < 0.5
    expected = np.zeros((24, 32), dtype=bool)
    expected[8:16, 16:24] = True
    np.testing.assert_array_equal(seen, expected)
    hidden = np.asarray(figure.axes[2].images[0].get_array())[..., 0] < 0.5
    np.testing.assert_array_equal(hidden, ~expected)
    assert [axis.get_xlabel() for axis in figure.axes[1:3]] == ["8%", "92%"]


def test_teacher_and_prediction_share_a_scale_symmetric_about_zero() -> None:
    teacher = np.random.default_rng(0).normal(size=(2, 1, 3, 4))
    teacher[0, 0, 0, 0] = np.nan
    figure = figures.latent_rows(photographs(), teacher, {"predicted": teacher.copy()})
    left, right = (np.asarray(figure.axes[column].images[0].get_array()) for column in (1, 2))
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(left[0, 0], panels.INVALID)
    low, high = figure.axes[-1].get_ylim()
    assert low == -high


def test_loss_figure_has_a_panel_a_loss_a_floor_and_fixed_colours() -> None:
    guided = [{"step": s, "loss_depth": 1.0, "loss_jepa": 100.0 / s, "lr": 0.1} for s in range(1, 60)]
    unguided = [{"step": s, "loss_jepa": 50.0 / s, "lr": 0.1} for s in range(1, 60)]
    figure = charts.loss_curves({"unguided": unguided, "guided": guided}, {"guided": 0.75})
    latent, depth, rate = figure.axes
    assert not depth.patches
    frozen = charts.loss_curves({"unguided": unguided, "guided": guided}, {}, {"guided": 20}).axes[1].patches
    assert len(frozen) == 1 and frozen[0].get_x() == 0 and frozen[0].get_width() == 20
    assert latent.get_yscale() == "log" and depth.get_yscale() == "linear"
    assert rate.get_title(loc="left") == "learning rate"
    labels = {str(line.get_label()): line for line in depth.get_lines()}
    labels = {name: line for name, line in labels.items() if not name.startswith("_")}
    assert list(labels) == ["guided", "constant predictor (floor)"]
    assert labels["guided"].get_color() == panels.run_colour(1)
    np.testing.assert_array_equal(labels["constant predictor (floor)"].get_ydata(), 0.75)


def test_running_mean_is_the_mean_of_the_neighbours_that_exist() -> None:
    values = np.random.default_rng(0).normal(size=20)
    slow = [values[max(0, place - 3) : place + 4].mean() for place in range(20)]
    np.testing.assert_allclose(charts.running_mean(values, 3), slow, atol=1e-12)


def test_batch_grid_ignores_invalid_depth() -> None:
    depth = np.full((3, 24, 32), 2.0)
    depth[0, :12] = 4.0
    depth[1] = 0.0
    figure = figures.batch_grid(photographs(3), depth, columns=2)
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]
    assert len(shown) == 6
    assert any((panel == panels.INVALID).all() for panel in shown if panel.dtype != np.uint8)
    low, high = figure.axes[-1].get_ylim()
    assert 0.24 < low < 0.26 and 0.49 < high < 0.51  # 1/m, untouched by the zeros


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 160), (160, 48), (48, 48)])
@pytest.mark.parametrize(("images", "runs"), [(1, 1), (2, 3), (6, 1), (6, 3)])
def test_colour_bars_are_whole_and_apart(size: tuple[int, int], images: int, runs: int) -> None:
    """Each bar, its figures and its label lie within the picture and on no other bar, however low the rows are."""
    random = np.random.default_rng(0)
    photographs = np.zeros((images, *size, 3), np.uint8)
    maps = random.uniform(0.01, 0.3, (images, size[0] // 4, size[1] // 4))
    predictions = {f"run {number}": maps for number in range(runs)} | {"random encoder": maps, "mean map": maps}
    latents = random.normal(size=(images, 2, *maps.shape[1:]))
    for figure, bars in (
        (figures.depth_rows(photographs, maps, predictions), images),
        (figures.latent_rows(photographs, latents, dict.fromkeys(list(predictions)[:runs], latents)), 1),
        (figures.batch_grid(photographs, random.uniform(1, 9, (images, *size))), 1),
    ):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = [axis for axis in figure.axes if axis.get_label() == "<colorbar>"]
        assert len(drawn) == bars
        boxes = [axis.get_tightbbox(canvas.get_renderer()) for axis in drawn]
        assert "[1/m]" in drawn[0].texts[0].get_text() or "no unit" in drawn[0].texts[0].get_text()
        for axis, box in zip(drawn, boxes, strict=True):
            assert box is not None
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
            low, high = axis.get_ylim()
            assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 2
            row = axis.get_position().height * len(drawn)
            assert row > 0.6  # of the picture, the rest of which is its titles
            assert not any(box.overlaps(other) for other in boxes if other is not None and other is not box)


def test_figures_are_saved_where_asked_or_refused(tmp_path: Path) -> None:
    figure = figures.batch_grid(photographs(), None)
    panels.save_figure(figure, tmp_path / "new" / "batch.png")
    assert Image.open(tmp_path / "new" / "batch.png").size[0] > 100
    with pytest.raises(BadInput, match=r"'\.pgn' \(did you mean '\.png'\?\)"):
        panels.save_figure(figure, tmp_path / "batch.pgn")


def said(results: Sequence[dict[str, object]]) -> list[str]:
    """What the first screen answers of one run without arrays."""
    asked = asked_last(merge_tables({"run": results}))
    return [] if asked is None else answer([], asked)


def test_the_answer_ranks_models_and_nothing_else() -> None:
    gates = {
        "task": "gates",
        "data": "x",
        "protocol": "y",
        "columns": [{"key": "figure", "label": "figure", "unit": ""}],
        "rows": [{"name": "floor", "figure": 0.5}],
    }
    assert said([]) == said([gates]) == []
    one = depth_result(0.25, 1.5) | {"rows": [{"name": "run", "r2_within": 0.25}]}
    assert said([gates, one]) == ["R² within on scenes:1 (depth, higher is better): run has 0.250."]
    rows = [
        {"name": name, "r2_within": figure} for name, figure in (("mean map", 0.0), ("teacher", 0.75), ("run", 0.5))
    ]
    _, beside = said([depth_result(0.0, 0.0) | {"rows": rows}])
    assert beside.startswith("The best without pretraining, mean map: run is ahead of mean map by 0.5")
    assert beside.endswith("The teacher has 0.750.")


def test_the_answer_is_of_the_measure_that_was_asked_for_last() -> None:
    def knn(**further: object) -> dict[str, object]:
        columns = [{"key": "top1", "label": "accuracy", "unit": "", "better": "higher"}]
        return {"task": "knn", "data": "scenes:1", "protocol": "", "columns": columns, **further}

    depth, labels = {"name": "run", "r2_within": 0.25}, [{"name": "run", "top1": 0.5}]
    early, late = "2026-01-31T23:59:59+00:00", "2026-02-01T00:00:00+00:00"
    for depths, labelled, first in ((early, late, "accuracy"), (late, early, "R²"), (late, late, "R²"), ("", "", "R²")):
        results = [knn(rows=labels, probed=labelled), depth_result(0.25, 1.5) | {"rows": [depth], "probed": depths}]
        assert said(results)[0].startswith(first)
    diagnosis = knn(rows=labels, probed=late) | {"task": "guidance"}
    assert said([diagnosis, knn(rows=labels, probed=early)])[0].startswith("accuracy on scenes:1 (knn,")
    assert said([diagnosis]) == ["accuracy on scenes:1 (guidance, higher is better): run has 0.500."]


def test_the_answer_has_intervals_where_figures_of_single_images_are_kept(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    residuals = {"guided": draw.normal(0.5, 0.1, 240), "unguided": draw.normal(0.7, 0.1, 240)}
    random = draw.normal(0.9, 0.1, 240)
    paths = []
    for name, residual in residuals.items():
        path = whole_run(tmp_path / name, name, "feature", own=1 - float(residual.mean()), rmse=1.0)
        with np.load(path / "probes/depth.npz") as stored:
            arrays = dict(stored)
        groups = np.array([f"place-{number % 12}" for number in range(240)])
        arrays |= {"within_residual": residual, "within_total": np.ones(240), "group": groups}
        np.savez(path / "probes/depth.npz", **arrays, random_within_residual=random)
        paths.append(path)

    def found() -> list[str]:
        runs = read_runs(paths)
        table = asked_last(merge_tables({run.name: run.probes for run in runs}))
        assert table is not None
        return answer(runs, table)

    first, beside = found()
    assert re.search(r"guided is ahead of unguided by 0\.\d+ \(95 % interval .* bootstrap over 12 groups\)", first)
    # The mean map's images are not kept, the random encoder's are.
    ends = re.search(r"ahead of random encoder by .* \(95 % interval ([\d.]+) to ([\d.]+), bootstrap", beside)
    assert ends is not None and float(ends[1]) < float((random - residuals["guided"]).mean()) < float(ends[2])
    # A random encoder that is not the leading run's own is judged by the images of the run whose it is.
    table = json.loads((paths[1] / "probes/depth.json").read_text())
    for row in table["rows"]:
        if row["name"] == "random encoder":
            row["r2_within"] = 0.2
    (paths[1] / "probes/depth.json").write_text(json.dumps(table))
    with np.load(paths[1] / "probes/depth.npz") as stored:
        np.savez(paths[1] / "probes/depth.npz", **dict(stored) | {"random_within_residual": random - 0.1})
    ends = re.search(r"ahead of random encoder, unguided by .* \(95 % interval ([\d.]+) to ([\d.]+), boot", found()[1])
    assert ends is not None and float(ends[1]) < float((random - 0.1 - residuals["guided"]).mean()) < float(ends[2])
    with np.load(paths[1] / "probes/depth.npz") as stored:
        arrays = dict(stored)
    np.savez(paths[1] / "probes/depth.npz", **arrays | {"group": arrays["group"][::-1]})  # not the same images
    assert "no interval: figures of single images are not kept" in found()[0]


def test_one_table_holds_what_all_tables_rank_by() -> None:
    accuracy = {"key": "top1", "label": "accuracy", "unit": "%", "better": "higher"}
    rows = [{"name": "random encoder", "top1": 10.0}, {"name": "encoder", "top1": 20.0}]
    knn = {"task": "knn", "data": "scenes:1", "protocol": "", "columns": [accuracy], "rows": rows}
    other = depth_result(0.25, 1.5) | {"protocol": "Another ridge."}
    found = overview(merge_tables({"a": [depth_result(0.5, 1.0), knn], "b": [depth_result(0.75, 1.5), other]}))
    assert [column.label for column in found.columns.values()] == [
        "depth: R² within",
        "depth: R² within, another protocol",
        "knn: accuracy",
    ]
    assert [row.name for row in found.rows] == ["mean map", "random encoder", "a", "b"]
    assert [list(row.values.values()) for row in found.rows][2:] == [[0.5, 20.0], [0.75, 0.25]]
    two = overview(merge_tables({"a": [depth_result(0.5, 1.0), depth_result(0.25, 1.5, data="indoor")]}))
    assert [column.label for column in two.columns.values()] == [
        f"depth: {label} on {data}" for data in ("scenes:1", "indoor") for label in ("R² within", "RMSE")
    ]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    places = [begin_run(tmp_path / place, "twin") for place in ("a/one", "a/two", "b/two")]
    other = begin_run(tmp_path / "else", "other")
    named = [run.name for run in read_runs([*places, other])]
    assert named == ["twin (one)", "twin (a/two)", "twin (b/two)", "other"]
    assert [run.name for run in read_runs([places[0], other])] == ["twin", "other"]


def test_what_was_not_probed_is_listed(tmp_path: Path) -> None:
    """A page that lacks a run's table says so instead of showing the others alone."""
    first, second = (Run(tmp_path, name, {}, {}, {}, [], []) for name in ("first", "second"))
    assert not_probed([first, second])[0].startswith("No run was probed: `depthjepa probe RUN depth`")
    probed = replace(first, probes=[{"task": "knn", "columns": [], "rows": []}])
    assert not_probed([probed, second]) == [f"{probes.tasks()['knn'].title}: not probed of second."]
    assert not_probed([probed]) == []
