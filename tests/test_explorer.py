"""Claims about the explorer of a page: what it shows are the cosines of the tokens, and a browser can use it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depthjepa.logbook import RunFolder
from depthjepa.report.explorer import explorer, quantised
from depthjepa.report.page import write_report
from depthjepa.runs import read_runs
from tiny_runs import Call, run

COUNT, SIDE, WIDTH = 3, 48, 20


def cosines(tokens: np.ndarray, one: tuple[int, ...], other: tuple[int, ...]) -> float:
    first, second = (tokens[place].astype(np.float64) for place in (one, other))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def write_run(folder: Path, name: str, tokens: np.ndarray, *, depth: bool = True, images: int = COUNT) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"name": name}))
    pixels = np.random.default_rng(0).integers(0, 255, (images, SIDE, SIDE, 3), dtype=np.uint8)
    arrays = {"images": pixels, "tokens": tokens.astype(np.float16)}
    if depth:
        metres = np.tile(np.arange(SIDE, dtype=np.float16) / 4 + 1, (images, SIDE, 1))
        metres[:, :8] = 0
        arrays["depth"] = metres
    RunFolder(folder).save_arrays("figures/features", arrays)
    return folder


def drawn(seed: int, grid: int, width: int = WIDTH, images: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, grid, grid, width))


def test_bytes_keep_the_cosines() -> None:
    tokens = drawn(1, 6, 128) * np.exp(3 * np.random.default_rng(2).normal(size=(COUNT, 6, 6, 1)))  # of any length
    tokens[0, 0, 0] = 0
    kept = quantised(tokens)
    worst = max(
        abs(cosines(kept, (0, 1, 2), place) - cosines(tokens, (0, 1, 2), place))
        for place in np.ndindex(COUNT, 6, 6)
        if place != (0, 0, 0)
    )
    assert worst < 0.01 and not kept[0, 0, 0].any()


def test_a_page_of_large_models_stays_below_ten_megabytes(tmp_path: Path) -> None:
    models = [
        write_run(tmp_path / f"m{n}", f"m{n}", drawn(n, side, 1024, 4), images=4) for n, side in enumerate((37, 16, 37))
    ]
    write_report(models, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 10_000_000
    (told,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    content = json.loads(told)
    assert len(content["images"]) >= 2 and len(content["models"]) == 3
    assert content["models"][1]["grid"] == [16, 16] and content["models"][0]["grid"] == [19, 19]  # two by two


def test_without_features_there_is_none_and_names_cannot_break_out(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("{}")
    assert explorer(read_runs([tmp_path / "bare"])) == ""
    wicked = write_run(tmp_path / "wicked", "<!--<script></script><b>bold", drawn(1, 3))
    page = explorer(read_runs([wicked]))
    assert "</script><b>" not in page and "<!--" not in page and page.count("<script") == page.count("</script>") == 2


def test_images_that_differ_get_an_explorer_each(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", "one", drawn(1, 3))
    other = write_run(tmp_path / "other", "other", drawn(2, 3, images=2), images=2)
    page = explorer(read_runs([one, other]))
    assert page.count('class="explorer"') == 2 and page.count("JSON.parse") == 1


def test_a_run_keeps_the_depth_that_is_read(tmp_path: Path, call: Call) -> None:
    run(Path("scenes"), tmp_path / "run", "data.scenes_train=16", "data.scenes_val=8", "train.steps=1")
    with np.load(tmp_path / "run" / "figures" / "features.npz") as kept:
        assert kept["depth"].shape == kept["images"].shape[:3] and kept["depth"].max() > 1
    status, _, fault = call("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert status == 0, fault
    assert 'class="explorer"' in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_comparison_is_explored_as_well(tmp_path: Path, call: Call) -> None:
    for name in ("one", "two"):
        settings = ("data.scenes_train=16", "data.scenes_val=8", "train.steps=1", f"name={name}")
        run(Path("scenes"), tmp_path / name, *settings)
    status, _, fault = call(
        "compare", tmp_path / "one", tmp_path / "two", "--data", "scenes", "--tasks", "correspond", "--out",
        tmp_path / "both", "data.scenes_train=16", "data.scenes_val=8", "evaluation.pictures=3",
    )  # fmt: skip
    assert status == 0, fault
    assert 'class="explorer"' in (tmp_path / "both" / "report.html").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright from PyPI."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed here")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("explorer")
    tokens = {"fine": drawn(1, 6), "coarse": drawn(2, 3)}
    runs = [write_run(folder / name, name, found) for name, found in tokens.items()]
    write_report(runs, folder / "page.html")
    return folder / "page.html", tokens


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("console", lambda told: faults.append(told.text) if told.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelector('.explorer [role=status]').textContent !== ''")
    return page, faults


def canvas(page: Any, row: int, image: int) -> Any:
    return page.locator(".explorer tr").nth(row).locator("canvas").nth(image)


def at(page: Any, row: int, image: int, down: float, right: float) -> dict[str, float]:
    box = canvas(page, row, image).bounding_box()
    return {"x": right * box["width"], "y": down * box["height"]}


def told(page: Any) -> str:
    text: str = page.locator(".explorer [role=status]").text_content()
    return text


def point(page: Any) -> tuple[int, ...]:
    """Image, and pixels right and down, of the point that is told."""
    found = re.match(r"Point: image (\d+), (\d+) right, (\d+) down", told(page))
    assert found is not None
    return tuple(map(int, found.groups()))


@pytest.mark.slow
def test_a_click_shows_the_cosines_of_all_models(browser: Any, page_of_two: tuple[Path, dict[str, np.ndarray]]) -> None:
    file, tokens = page_of_two
    page, faults = opened(browser, file)
    canvas(page, 0, 1).click(position=at(page, 0, 1, 36.5 / 48, 12.5 / 48))
    image, right, down = point(page)
    assert image == 2 and abs(right - 12) <= 1 and abs(down - 36) <= 1  # a browser's boxes are not of whole pixels
    assert told(page).endswith(f", {1 + right / 4:.2f} m.")
    for image, down, right in ((2, 0.1, 0.9), (0, 0.6, 0.4), (1, 0.75, 0.25)):
        canvas(page, 1, image).hover(position=at(page, 1, image, down, right))
        for name, found in tokens.items():
            grid = found.shape[1]
            asked = (1, int(0.75 * grid), int(0.25 * grid))
            expected = cosines(found.astype(np.float16), asked, (image, int(down * grid), int(right * grid)))
            shown = float(re.search(rf"{name} (-?\d\.\d\d)", told(page))[1])  # type: ignore[index]
            assert shown == pytest.approx(expected, abs=0.016)
    canvas(page, 0, 0).hover(position=at(page, 0, 0, 0.05, 0.5))
    assert "no depth" in told(page)
    # The most similar patch of another image has its ring: white at its rim.
    found = tokens["fine"].reshape(COUNT, 36, WIDTH)
    asked = found[1, 4 * 6 + 1]
    alike = (found[0] @ asked) / np.linalg.norm(found[0], axis=1)
    row, column = divmod(int(alike.argmax()), 6)
    brightest = page.evaluate(
        """([down, right]) => {
          const canvas = document.querySelectorAll('.explorer tr')[1].querySelectorAll('canvas')[0];
          const x = Math.round(right * canvas.width + 5), y = Math.round(down * canvas.height);
          const { data } = canvas.getContext('2d').getImageData(x - 2, y - 2, 5, 5);
          return Math.max(...Array.from({ length: 25 }, (_, at) => Math.min(...data.slice(4 * at, 4 * at + 3))));
        }""",
        [(row + 0.5) / 6, (column + 0.5) / 6],
    )
    assert brightest > 200
    assert faults == []
    page.close()


@pytest.mark.slow
def test_arrow_keys_move_the_point_by_patches(browser: Any, page_of_two: tuple[Path, dict[str, np.ndarray]]) -> None:
    page, faults = opened(browser, page_of_two[0])
    canvas(page, 0, 2).focus()
    assert told(page).startswith("Point: image 3, 24 right, 24 down")
    page.keyboard.press("ArrowRight")
    assert told(page).startswith("Point: image 3, 36 right, 28 down")  # the middle of the next patch of 8 px
    for _ in range(9):
        page.keyboard.press("ArrowUp")
    assert told(page).startswith("Point: image 3, 36 right, 4 down")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "CANVAS"  # the last image
    assert canvas(page, 0, 0).get_attribute("aria-label") == "image 1: arrow keys move the point"
    assert faults == []
    page.close()


@pytest.mark.slow
def test_a_finger_works_as_a_pointer(browser: Any, page_of_two: tuple[Path, dict[str, np.ndarray]]) -> None:
    page, faults = opened(browser, page_of_two[0], has_touch=True)
    canvas(page, 2, 0).tap(position=at(page, 2, 0, 0.5, 0.9))
    image, right, down = point(page)
    assert image == 1 and abs(right - 43) <= 1 and abs(down - 24) <= 1
    assert faults == []
    page.close()


@pytest.mark.slow
def test_a_picture_is_saved_and_sections_fold(browser: Any, page_of_two: tuple[Path, dict[str, np.ndarray]]) -> None:
    file, _ = page_of_two
    page, faults = opened(browser, file)
    pictures = page.locator("figure img")
    assert page.locator("figure button").count() == pictures.count() > 0
    with page.expect_download() as waiting:
        page.locator("figure button").nth(0).click()
    shown = base64.b64decode(pictures.nth(0).get_attribute("src").partition(",")[2])
    assert Path(waiting.value.path()).read_bytes() == shown
    assert waiting.value.suggested_filename == "fine-and-coarse-1.png"
    unfolded = "document.querySelectorAll('section > details[open]').length"
    before = page.evaluate(unfolded)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # paper has all
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(unfolded) == before > 1
    page.locator(".folding button").click()
    assert page.evaluate(unfolded) == 0 and page.locator(".folding button").text_content() == "Unfold all"
    page.locator(".folding button").click()
    assert page.evaluate(unfolded) == page.locator("section").count()
    assert faults == []


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_the_page_fits_wide_and_narrow_windows_in_both_schemes(
    browser: Any, page_of_two: tuple[Path, dict[str, np.ndarray]], width: int, scheme: str
) -> None:
    page, _ = opened(browser, page_of_two[0], color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").bounding_box()["y"] < page.locator(".lead").bounding_box()["y"] < 400
    ink, paper = page.evaluate(
        "(({ color, backgroundColor }) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 400
