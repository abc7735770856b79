"""The tracker's page, a study's report and a run's page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from command_line import COMMAND, ENVIRONMENT, SMALL, run, run_here, wait_for, write_config
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two conditions of one seed, trained and written up."""
    folder = tmp_path_factory.mktemp("pages")
    store = folder / "mlflow.db"
    tree = {
        "base": SMALL
        | {
            "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
            "tracking": {"uri": f"sqlite:///{store}", "log_model": False},
        },
        "conditions": {"full": {}, "no-kl": {"loss.lambda_kl": 0}},
        "seeds": [0],
        "output_dir": str(folder / "study"),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree))
    done = run("ablate", path, "--serial")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(store) as content:
        ids = dict(content.execute("select name, run_uuid from runs").fetchall())
    return SimpleNamespace(folder=folder / "study", ids=ids)


@pytest.fixture(scope="module")
def address(study):
    """What `labn ui` prints, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = study.folder / "ui.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*COMMAND, "ui", str(study.folder), "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT,
        )  # fmt: skip
        try:
            wait_for(lambda: "Ctrl-C stops it" in output.read_text(), process)
            yield SimpleNamespace(root=f"http://127.0.0.1:{port}", output=output.read_text())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))  # nothing listens any more


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(option)
    options.add_argument("--window-size=1600,1000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(autouse=True)
def screenshot(browser, request):
    """Keep what was seen last in the folder that LABN_TEST_SCREENSHOTS names."""
    yield
    folder = os.environ.get("LABN_TEST_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{request.node.name}.png"))


def see(browser, *texts):
    """Wait until the page shows all of the texts; give its own."""

    def shown(_):
        page = browser.find_element(By.TAG_NAME, "body").text
        return page if all(text in page for text in texts) else None

    return WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[Exception]).until(shown)


def loaded_pictures(browser):
    """List the widths of the pictures that the browser could read."""
    pictures = browser.find_elements(By.TAG_NAME, "img")
    return [width for one in pictures if (width := one.get_property("naturalWidth"))]


def test_the_address_that_ui_prints_shows_the_studys_runs_and_what_to_compare(browser, address):
    link = re.search(r"runs of study: (\S+)", address.output)[1]

    browser.get(link)

    page = see(browser, "2 matching runs", "study-full-0", "study-no-kl-0", "test_pid")
    assert "runs of study" in page  # the saved view
    assert "Agent versions" not in page  # of the mode for language models
    assert "127.0.0.1" in link


def test_the_page_of_a_studys_entry_begins_with_its_table_and_picture(browser, address, study):
    link = re.search(r"^  study: (\S+)", address.output, re.MULTILINE)[1]

    browser.get(link)

    page = see(browser, "Description", "AUROC", "no-kl")
    assert page.index("AUROC") < page.index("loss.lambda_kl")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda _: max(loaded_pictures(browser), default=0) > 500
    )


def test_two_runs_show_what_differs_between_them(browser, address, study):
    runs = json.dumps([study.ids["study-full-0"], study.ids["study-no-kl-0"]])

    browser.get(f'{address.root}/#/compare-runs?runs={runs}&experiments=["1"]')

    see(browser, "loss.lambda_kl", "loss.theta_b")
    # Out of sight, where a click does not reach.
    for switch in browser.find_elements(By.CSS_SELECTOR, "[role=switch]"):
        browser.execute_script("arguments[0].click()", switch)
    WebDriverWait(browser, PATIENCE_S).until(
        lambda _: "loss.theta_b" not in browser.find_element(By.TAG_NAME, "body").text
    )
    see(browser, "loss.lambda_kl 1.0 0.0", "condition full no-kl")


def test_two_runs_show_their_curves_of_val_pid(browser, address, study):
    runs = json.dumps([study.ids["study-full-0"], study.ids["study-no-kl-0"]])

    browser.get(
        f'{address.root}/#/metric?runs={runs}&metric="val_pid"&experiments=["1"]'
        '&plot_metric_keys=["val_pid"]'
    )

    see(browser, "study-full-0 (val_pid)", "study-no-kl-0 (val_pid)")

    # Two epochs each; every line may be drawn twice, and after its name.
    def paths(_):
        lines = browser.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace path.js-line")
        found = {line.get_attribute("d") for line in lines}
        return found if len(found) == 2 else None

    drawn = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[Exception]).until(paths)
    assert all(path.count("L") == 1 for path in drawn)


@pytest.mark.parametrize("picture", ["scores.png", "maps.png"])
def test_the_pictures_of_a_study_open(browser, address, study, picture):
    place = f"{address.root}/#/experiments/1/runs/{study.ids['study']}/artifacts/report/{picture}"

    browser.get(place)

    WebDriverWait(browser, PATIENCE_S).until(lambda _: max(loaded_pictures(browser), default=0))
    WebDriverWait(browser, PATIENCE_S).until(lambda _: max(loaded_pictures(browser)) > 500)


def test_the_page_of_a_study_shows_its_pictures(browser, study):
    browser.get((study.folder / "report" / "report.html").as_uri())

    page = see(browser, "study", "Classification", "no-kl")
    assert "Settings" in page
    pictures = browser.find_elements(By.TAG_NAME, "img")
    assert len(pictures) == len(loaded_pictures(browser)) == 6
    assert all(one.is_displayed() and one.rect["width"] > 300 for one in pictures)


HOSTILE = "<script>alert(1)<"
HOSTILE_FILE = "<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run whose class and files have names that a page could take for elements."""
    folder = tmp_path_factory.mktemp("run-page")
    rng = np.random.default_rng(0)
    for number in range(60):
        name = (HOSTILE, "healthy")[number % 2]
        place = folder / "data" / name / f"{HOSTILE_FILE}{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place)
    data = {"name": "folder", "root": str(folder / "data"), "image_size": 32}
    data |= {"cache_dir": str(folder / "cache"), "negative_class": "healthy"}
    config = write_config(folder, data=data, train__epochs=1)
    for words in (
        ("train", config),
        ("evaluate", folder / "run", "--methods", "LABN,random"),
        ("report", folder / "run"),
    ):
        done = run_here(*words)
        assert done.returncode == 0, done.stderr
    return folder / "run" / "report" / "report.html"


@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_of_a_run_shows_its_maps_at_any_threshold(browser, page, width):
    phone = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get_log("browser")  # what the pages before have said
    try:
        browser.get(page.as_uri())

        text = see(browser, HOSTILE, HOSTILE_FILE, "Training settings", "Confusion", "Threshold")
        assert "Failures by kind" in text
        pictures = browser.find_elements(By.TAG_NAME, "img")
        assert len(pictures) == len(loaded_pictures(browser))
        assert all(one.get_attribute("alt") for one in pictures)
        shown = browser.execute_script("return document.documentElement.scrollWidth")
        assert shown <= width  # only figures and tables scroll, within themselves
        assert shares_at(browser, 0) == ["100.0%"] * 8
        assert shares_at(browser, 1) == ["0.0%"] * 8
        assert browser.get_log("browser") == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def shares_at(browser, threshold):
    """Move the slider, and return the attended shares that the page then shows."""
    move = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(move, browser.find_element(By.ID, "theta"), threshold)
    return [one.text for one in browser.find_elements(By.CLASS_NAME, "share")]


def test_the_page_of_a_run_is_whole_without_scripts(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())

        assert not browser.find_element(By.ID, "theta").is_displayed()
        assert browser.find_element(By.CLASS_NAME, "share").text.endswith("%")
        maps = browser.find_elements(By.CSS_SELECTOR, ".map img")
        assert len(maps) == 8
        assert all(one.get_property("naturalWidth") == 32 for one in maps)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
