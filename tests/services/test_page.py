"""The MLflow page as a person sees it: a small sweep, `drpo-bench ui`, and headless Chromium.

DRPO_BENCH_SCREENSHOTS names a folder that keeps the pictures.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drpo_bench.records import read_json
from drpo_bench.tracking.contents import run_title
from tests.mlflow_store import check_complete
from tests.services.conftest import absent
from tests.services.servers import SWEEP, drpo_bench, free_port

FLAGS = [
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SLOW = 60_000  # milliseconds


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The results of a sweep of two runs, figures included, in the store that is the default."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.toml").write_text(SWEEP)
    done = subprocess.run(**drpo_bench("run", "small.toml", "--workers", "1", cwd=folder), capture_output=True)
    assert done.returncode == 0, done.stderr
    check_complete(f"sqlite:///{folder}/results/mlflow.db", folder / "results" / "small")
    return folder / "results"


@pytest.fixture(scope="module")
def address(results) -> Iterator[str]:
    """Where `drpo-bench ui` says that the experiment's page is."""
    command = drpo_bench("ui", str(results), "--port", str(free_port()), cwd=results)
    with subprocess.Popen(**command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline().startswith("MLflow: http://127.0.0.1:")
            name, address = process.stdout.readline().strip().split(": ")
            assert name == "small"
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator:
    """A browser's tab. The Assistant, which opens itself on a first visit, stays closed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not chromium:
        absent("Chromium")
    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        page.set_default_timeout(SLOW)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def shoot(page, tmp_path_factory):
    """Saves a screenshot."""
    folder = Path(os.environ.get("DRPO_BENCH_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    return lambda name: page.screenshot(path=folder / f"{name}.png")


def run_ids(results: Path) -> dict[str, str]:
    """The MLflow run of every run directory, by its title on the page."""
    paths = (results / "small" / "runs").glob("*/mlflow.json")
    titles = {path: run_title(path.parent.name, read_json(path.parent / "config.json")) for path in paths}
    return {title: read_json(path)["run_id"] for path, title in titles.items()}


def test_the_experiment_and_its_nested_runs(page, address, results, shoot):
    page.goto(address)
    rows = page.get_by_role("row")
    parent = rows.filter(has=page.get_by_role("link", name="small"))
    parent.wait_for()
    assert page.get_by_text("Does every number arrive?").first.is_visible()  # the experiment's description
    names = list(run_ids(results))
    assert len(names) == 2
    assert not page.get_by_role("link", name=names[0]).is_visible()  # folded up below the parent
    parent.get_by_role("button").first.click()
    for name in names:
        page.get_by_role("link", name=name).wait_for()
    places = [rows.get_by_role("link", name=name).bounding_box() for name in ["small", *names]]
    shoot("experiment")
    assert all(place["x"] > places[0]["x"] + 10 and place["y"] > places[0]["y"] for place in places[1:])


def test_the_curves_of_a_run(page, address, results, shoot):
    name, run_id = next(iter(run_ids(results).items()))
    base = address.split("/runs")[0]
    page.goto(f"{base}/runs/{run_id}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("rollout_tokens_per_s")
    chart = page.locator(".js-plotly-plot").first
    chart.locator("path.js-line").first.wait_for(state="attached")
    line = chart.locator("path.js-line").first.get_attribute("d")
    shoot("charts")
    assert line.count("L") > 9  # of 20 steps; points on a straight line are left out
    assert page.get_by_role("heading", name=name).first.is_visible()


def test_params_and_description_of_a_run(page, address, results, shoot):
    run_id = next(run_id for title, run_id in run_ids(results).items() if title.startswith("drpo"))
    page.goto(f"{address.split('/runs')[0]}/runs/{run_id}")
    page.get_by_text("drpo-bench reproduce results/small/runs/nano-fp32-drpo-s0-").wait_for()
    shoot("run")
    page.get_by_placeholder("Search parameters").fill("loss.delta")
    row = page.get_by_role("row").filter(has_text="loss.delta")
    row.first.wait_for()
    assert "0.15" in row.first.inner_text()


def test_a_figure_among_the_artifacts(page, address, results, shoot):
    parent = read_json(results / "small" / "mlflow.json")["run_id"]
    page.goto(f"{address.split('/runs')[0]}/runs/{parent}/artifacts")
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("learning_curves.png", exact=True).click()
    picture = page.locator("img[src^='blob:'], img[src*='learning_curves']").first
    picture.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 400", arg=picture.element_handle())
    shoot("figure")
    page.get_by_text("report.md", exact=True).click()
    page.get_by_role("heading", name="Results").wait_for()
    shoot("report")
