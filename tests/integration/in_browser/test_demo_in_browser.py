"""The page of docs/demo in a real browser: its probabilities are those of Python, and it needs no network.

It needs npm, and what tests/integration/in_browser/test_report_in_browser.py needs. Run it with `pytest -n0 -m slow`.
ONNXRUNTIME_WEB may name the archive of onnxruntime-web, which npm fetches otherwise.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb

import kdkit
from kdkit import Net, Optimizer, Recipe, Stage, Training, Truth
from kdkit.metrics import MacroAUROC
from kdkit_ecg import Challenge2020, LRHNet, LRHNetS, Predictor, Synthetic
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import read_header
from kdkit_ecg.views import Leads
from tools import demo

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCREENSHOTS = os.environ.get("KDKIT_SCREENSHOTS")  # a folder in which to keep pictures of the page
TOLERANCE = 1e-4  # of a probability


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The archive of onnxruntime-web, fetched once."""
    if archive := os.environ.get("ONNXRUNTIME_WEB"):
        return Path(archive)
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    return demo.fetch_runtime(tmp_path_factory.mktemp("runtime"))


def exported(folder, data, network, leads):
    """Train a network until its outputs depend on the signal, and return the path of its ONNX file."""
    torch.manual_seed(0)
    student = Net("student", network(leads=leads), view=Leads(leads))
    training = Training(epochs=3, batch_size=8, optimizer=Optimizer(torch.optim.Adam, lr=0.01))
    stage = Stage({student: Truth(torch.nn.BCEWithLogitsLoss())}, training)
    recipe = Recipe(data=data, metrics=(MacroAUROC(),), schedule=[stage])
    kdkit.run(recipe, out=folder / "run", device="cpu", progress=False)
    (file,) = kdkit.export_net(recipe, folder / "run", to="onnx")
    return file.path


@pytest.fixture(scope="module")
def simulated(tmp_path_factory, runtime):
    """A page with LRH-Net-S of three leads at 100 Hz, in mV."""
    folder = tmp_path_factory.mktemp("simulated")
    model = exported(folder, Synthetic(train=64, validation=32, test=32), LRHNetS, 3)
    demo.build(model, folder / "page", runtime)
    with demo.served(folder / "page") as address:
        yield address, folder / "page"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, runtime, shared):
    """A page with LRH-Net of twelve leads, prepared as for the Challenge: filtered, at 257 Hz, with z-scores."""
    folder = tmp_path_factory.mktemp("recorded")
    data = Challenge2020(shared / "ecg" / "georgia", store=None)
    demo.build(exported(folder, data, LRHNet, 12), folder / "page", runtime)
    with demo.served(folder / "page") as address:
        yield address, folder / "page"


@pytest.fixture
def open_page(browser):
    """Open a page. Errors in its console, and requests to other addresses, fail the test."""
    problems, contexts = [], []

    def opened(address, width=1280, theme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        allowed = (address, "data:")
        page.on("request", lambda sent: problems.append(sent.url) if not sent.url.startswith(allowed) else None)
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def choose(page, *files):
    """Choose files, and wait until the page has shown them or the reason why it cannot."""
    act(page, lambda: page.set_input_files("#files", [str(file) for file in files]))


def act(page, action):
    request = int(page.evaluate("document.body.dataset.shown || 0"))
    action()
    # Not wait_for_function, which the policy of the page refuses as it evaluates a text.
    page.wait_for_selector(f"body[data-shown='{request + 1}']")


def probabilities_of(page):
    """Return the probabilities of the page by class, and the predicted classes."""
    assert page.locator("#problem").is_hidden(), page.inner_text("#problem")
    rows = page.locator("#rows tr").evaluate_all(
        "rows => rows.map(row => [row.dataset.name, row.dataset.probability, row.classList.contains('predicted')])"
    )
    return {name: float(value) for name, value, _ in rows}, {name for name, _, predicted in rows if predicted}


def assert_as_in_python(page, path, folder):
    """Check that the page shows what `kdkit predict` computes of a record; return the probabilities."""
    probabilities, predicted = probabilities_of(page)
    expected = Predictor(folder / "model.onnx", combine="centre").predict(path)
    assert probabilities.keys() == {*expected.classes}
    shown = np.array([probabilities[name] for name in expected.classes])
    np.testing.assert_allclose(shown, expected.probabilities, rtol=0, atol=TOLERANCE, err_msg=str(path))
    assert predicted == {*expected.predicted}
    return shown


def test_simulated_records_have_the_probabilities_of_python(simulated, open_page):
    address, folder = simulated
    page = open_page(address)
    records = json.loads((folder / "demo.json").read_text())["records"]
    assert len(records) == len(demo.FINDINGS)
    rows = []
    for record in records:
        act(page, lambda name=record["name"]: page.locator(f"button[data-name={name}]").click())
        assert page.locator("#record .ecg svg").get_attribute("aria-label") == "ECG of twelve leads"
        rows.append(assert_as_in_python(page, folder / "records" / f"{record['name']}.hea", folder))
    assert np.ptp(rows, axis=0).max() > 100 * TOLERANCE  # the network does not give the same for any signal


def test_dropped_records_of_two_rates_and_formats_have_the_probabilities_of_python(
    recorded, open_page, shared, tmp_path
):
    address, folder = recorded
    page = open_page(address)
    headers = [
        shared / "ecg" / name for name in ("georgia/E07500.hea", "ptb/S0001.hea", "ptb/S0002.hea", "ludb/LU0002.hea")
    ]
    # The same format in a .dat file without the bytes of MATLAB, of eight leads at another rate.
    record = read_header(headers[0]).read()
    kept = [LEADS.index(lead) for lead in ("II", "I", "V1", "V2", "V3", "V4", "V5", "V6")]
    wfdb.wrsamp(
        "eight",
        fs=400,
        units=["mV"] * len(kept),
        sig_name=[LEADS[row] for row in kept],
        p_signal=record.signal[kept].T.astype(np.float64),
        fmt=["16"] * len(kept),
        comments=["Age: 44", "Sex: F"],
        write_dir=str(tmp_path),
    )
    rows = []
    for path in [*headers, tmp_path / "eight.hea"]:
        choose(page, *path.parent.glob(f"{path.stem}.*"))
        rows.append(assert_as_in_python(page, path, folder))
        assert page.inner_text("#name") == f"Record {path.stem}"
    assert np.ptp(rows, axis=0).max() > 100 * TOLERANCE
    assert "Derived from other limb leads: III, aVR, aVL, aVF." in page.inner_text("#used")
    assert page.inner_text("#facts") == "12.5 s at 400 Hz · 44 years, female"


def test_files_are_dropped_anywhere_on_the_page(simulated, open_page):
    address, folder = simulated
    page = open_page(address)
    path = folder / "records" / "simulated-af.hea"
    contents = {file.name: list(file.read_bytes()) for file in path.parent.glob(f"{path.stem}.*")}
    transfer = page.evaluate_handle(
        """contents => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of Object.entries(contents)) {
                transfer.items.add(new File([Uint8Array.from(bytes)], name));
            }
            return transfer;
        }""",
        contents,
    )
    act(page, lambda: page.dispatch_event("h1", "drop", {"dataTransfer": transfer}))
    assert page.inner_text("#name") == "Record simulated-af"
    assert_as_in_python(page, path, folder)


def test_what_cannot_be_read_is_refused_and_nothing_of_another_record_stays(simulated, open_page, tmp_path):
    address, folder = simulated
    page = open_page(address)
    source = folder / "records" / "simulated-nsr.hea"
    signal = shutil.copy(source.with_suffix(".dat"), tmp_path)
    header = tmp_path / source.name
    for text, reason in [
        (source.read_text().replace(" 16 ", " 212 "), "format 212; this page reads format 16 only"),
        (source.read_text().replace(" 500 5000", " 500 9000"), "5,000 samples per lead, but the header has 9,000"),
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
    ]:
        header.write_text(text)
        choose(page, header, signal)
        assert reason in page.inner_text("#problem")
        assert page.locator("#record").is_hidden()
    choose(page, signal)
    assert "Expected one .hea file" in page.inner_text("#problem")
    header.write_text(source.read_text())
    choose(page, header)
    assert "names the signal file simulated-nsr.dat" in page.inner_text("#problem")
    choose(page, header, signal)
    assert page.locator("#problem").is_hidden()
    assert page.locator("#record").is_visible()


def test_texts_of_a_record_are_no_markup(simulated, open_page, tmp_path):
    address, folder = simulated
    page = open_page(address)
    source = folder / "records" / "simulated-nsr.hea"
    shutil.copy(source.with_suffix(".dat"), tmp_path)
    header = tmp_path / "record.hea"
    # Three leads, of which the one that the network does not need has markup as its name.
    lines = source.read_text().replace(" V6\n", " <img/src=x/onerror=alert(1)>\n")
    header.write_text(lines)
    choose(page, header, tmp_path / "simulated-nsr.dat")
    assert page.locator("#record .ecg svg").get_attribute("aria-label") == "ECG of 12 leads"
    assert "<img/src=x/onerror=a" in page.locator("#paper").text_content()
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_warns(simulated, open_page, theme, width):
    page = open_page(simulated[0], width, theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    warning = page.locator(".warning")
    assert warning.is_visible()
    assert "Not a medical device" in warning.inner_text()
    assert warning.bounding_box()["y"] < 900
    # 25 mm/s: ten seconds and the calibration pulse, at 96 pixels per inch.
    assert page.locator("#paper svg").bounding_box()["width"] == pytest.approx(260 / 25.4 * 96, abs=1)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    if SCREENSHOTS:
        page.locator("#theme").click()
        page.screenshot(path=f"{SCREENSHOTS}/demo-{theme}-{width}.png", full_page=True)


def test_a_page_that_is_opened_from_the_disk_or_not_built_says_what_to_do(browser, simulated, tmp_path):
    page = browser.new_page()
    page.goto((simulated[1] / "index.html").as_uri())
    assert "Serve its folder: python -m http.server" in page.inner_text("#status")
    with demo.served(demo.PAGE) as address:
        page.goto(address)
        page.wait_for_selector("body[data-ready=true]")
        assert "python -m tools.demo --model FILE.onnx --out FOLDER" in page.inner_text("#problem")
    page.close()


def test_an_older_page_is_replaced_and_nothing_else(simulated, runtime, tmp_path, capsys):
    _, folder = simulated
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "older.mjs").write_text("")
    options = ["--model", folder / "model.onnx", "--out", tmp_path / "page", "--runtime", runtime]
    assert demo.main(map(str, options)) == 0
    assert f"python -m http.server --directory {tmp_path / 'page'}" in capsys.readouterr().out
    files = {str(file.relative_to(tmp_path / "page")) for file in (tmp_path / "page").rglob("*")}
    assert files == {str(file.relative_to(folder)) for file in folder.rglob("*")}
    assert [file.name for file in tmp_path.iterdir()] == ["page"]
