"""The page of a store as somebody uses it: opened in headless Chromium, sorted, filtered, clicked, read."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from handmade import REFERENCE, Bench, diagnosis
from handmade_findings import POWERS, SCALING, FindingsBench, powers, scaling

from dmqbench.results.page.document import write_page
from dmqbench.results.studies.dose_response import RUNGS
from dmqbench.results.studies.findings import FindingsReader
from dmqbench.results.studies.trajectory_reconstruction import TrajectoryReconstruction

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium on the path: {', '.join(NAMES)}")

EVIL = "<script>alert(1)</script>"
JOBS = (("w8a8", 48.0, 1e-4), ("w4a6", 29.0, 1e-2), ("w3a6", 19.0, 1e-1))


def values(level: float) -> list[float]:
    return [level + 0.5 * np.sin(index) for index in range(64)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Three methods at three bit-widths, a stranger, full precision, and a second table of another protocol."""
    bench = Bench(tmp_path_factory.mktemp("page") / "runs")
    sizes = {"w8a8": 1.8, "w4a6": 0.93, "w3a6": 0.71, "w32a32": 7.1}

    def job(method: str, bits: str, psnr: float | None, **changes) -> None:
        own = (
            {} if psnr is None else {"per_image": values(psnr), "diagnosis": diagnosis(changes.pop("scale"), steps=20)}
        )
        weight, activation = (int(width) for width in bits[1:].split("a"))
        cost = {"size_mib": {"all_layers": sizes[bits], "packed": None}, "bops": 83e6 * weight * activation}
        fd = 3.0 if psnr is None else 3.0 + 2e4 * 10 ** (-psnr / 10)
        entries = {"n": 64} | changes.pop("protocol", {})
        bench.job(method, bits, psnr, fd, cost=cost | {"simulated": True}, protocol=entries, **own, **changes)

    job("fp", "w32a32", None)
    for bits, psnr, scale in JOBS:
        for place, method in enumerate(("rtn", "q_diffusion", "dmq")):
            job(method, bits, psnr + 3 * place, scale=scale / (1 + place))
    job("rtn", "w4a6", 28.5, seed=1, scale=1e-2)
    job("foreign", "w4a6", 27.0, name=EVIL, scale=2e-2, unavailable={"fid": "Inception weights not found"})
    job("rtn", "w4a6", 31.0, scale=1e-2, protocol={"timesteps": tuple(range(50))})
    return bench


@pytest.fixture(scope="module")
def page_file(bench) -> Path:
    return write_page(bench.root, bench.results(), bench.root / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """A page in a window of its own; what it complains about or asks a network for is kept."""

    def __init__(self, browser, file: Path, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_default_timeout(120_000)  # a slow machine fails no test
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.first_job = self.page.locator("#jobs").input_value()

    def column(self, name: str, table: str = "#table-0") -> list[str]:
        """Texts of a column's visible rows of jobs."""
        heads = self.page.locator(f"{table} table.results thead th").all_inner_texts()
        place = [head.replace("\n", "").rstrip(" ↑↓") for head in heads].index(name) + 1
        rows = f"{table} table.results tbody tr[data-job]:visible > :nth-child({place})"
        return self.page.locator(rows).all_inner_texts()

    def head(self, name: str):
        return self.page.locator("#table-0 table.results thead button", has_text=name)

    def points(self, plot: str) -> int:
        """Points and lines that a plot has drawn, once there are any."""
        place = self.page.locator(plot)
        place.scroll_into_view_if_needed()
        place.locator(".main-svg").first.wait_for()
        return place.locator("path.point, path.js-line, .hm image").count()


@pytest.fixture(scope="module")
def opened(browser, page_file) -> Iterator[Visit]:
    """One window for many tests, as a page takes seconds to open."""
    opened = Visit(browser, page_file)
    yield opened
    opened.context.close()


@pytest.fixture
def visit(opened) -> Iterator[Visit]:
    """The window, with every row shown and the first job chosen."""
    section = opened.page.locator("#table-0")
    section.locator(".find").fill("")
    for choice in ("select.method", "select.bits"):
        section.locator(choice).select_option("")
    opened.page.locator("#jobs").select_option(opened.first_job)
    yield opened
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def keep_screenshot(page, name: str) -> None:
    """Take a picture for people, into the folder ``DMQBENCH_SCREENSHOTS``; no test looks at one."""
    if folder := os.environ.get("DMQBENCH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / name, full_page=True)


def numbers(texts: list[str]) -> list[float]:
    return [float(text.partition("±")[0]) for text in texts if text[0].isdigit()]


def test_sorting_by_a_click_on_the_head(visit):
    head = visit.head("psnr")
    head.click()
    falling = visit.column("psnr")
    assert falling[0] == "identical" and numbers(falling) == sorted(numbers(falling), reverse=True)
    assert visit.page.locator("#table-0 thead th[aria-sort=descending]").count() == 1
    head.click()
    rising = visit.column("psnr")
    assert numbers(rising) == sorted(numbers(falling)) and rising[-1] == "identical"
    visit.head("bits").click()
    assert visit.column("bits")[0] == "w3a6" and visit.column("bits")[-1] == "w32a32"


def test_filtering_by_word_method_and_bits(visit):
    section = visit.page.locator("#table-0")
    everything = len(visit.column("method"))
    section.locator("select.method").select_option("rtn")
    assert set(visit.column("method")) == {"rtn"}
    section.locator("select.bits").select_option("w4a6")
    assert len(visit.column("method")) == 2
    assert section.locator(".count").inner_text() == f"2 of {everything} rows"
    section.locator("select.method").select_option("")
    section.locator(".find").fill("q_diff")
    assert visit.column("method") == ["q_diffusion"]
    section.locator(".find").fill("nothing like it")
    assert visit.column("method") == []


def test_a_number_says_its_protocol_on_hover_and_on_focus(visit):
    tip = visit.page.locator("#tip")
    visit.page.locator("#table-0 td[data-metric=psnr]").nth(1).hover()
    assert "psnr/1 tool=dmqbench" in tip.inner_text() and "n = 64" in tip.inner_text()
    assert "numerical floor" in tip.inner_text() and "95 % interval" in tip.inner_text()
    visit.page.keyboard.press("Escape")
    assert tip.is_hidden()
    visit.page.locator("#table-0 button.open").first.focus()
    for _ in range(4):
        visit.page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    visit.page.locator("td[data-sentence]").first.hover()
    assert "rtn" in tip.inner_text() and "pairs" in tip.inner_text()


def test_a_name_from_a_store_is_shown_and_not_run(visit):
    assert EVIL in visit.column("method")
    visit.page.locator("button.open", has_text="alert").click()
    assert EVIL in visit.page.locator("#job-title").inner_text()
    assert "Inception weights not found" in visit.page.locator("#metrics").inner_text()


def test_plots_are_drawn_and_their_axes_can_be_chosen(visit):
    plot = "#table-0 [data-plot=tradeOff]"
    assert visit.points(plot) >= 10
    title = visit.page.locator(f"{plot} .xtitle")
    assert "MiB" in (title.text_content() or "")
    visit.page.locator("#table-0 select.axis").select_option("bops")
    visit.page.locator("#table-0 select.metric").select_option("fd_digits")
    title.filter(has_text="BOPs").wait_for()
    assert "fd_digits · lower is better" in visit.page.locator(f"{plot} .ytitle").text_content()
    assert visit.points("#table-0 [data-plot=trajectories]") >= 9
    assert visit.points("#table-0 [data-plot=proxies]") >= 9
    visit.page.locator("#table-0 select.proxy").select_option("injected_error")
    visit.page.locator("#table-0 [data-plot=proxies] .xtitle", has_text="injected error").wait_for()


def test_a_click_on_a_row_shows_its_job(visit, bench):
    row = visit.page.locator("#table-0 tr[data-method=dmq][data-bits=w4a6]")
    row.locator("td").nth(1).click()
    assert visit.page.locator("#job-title").inner_text() == "One job: dmq w4a6"
    assert "chosen" in (row.get_attribute("class") or "")
    first = visit.page.locator("#facts").inner_text()
    assert visit.points("#steps") >= 4 and visit.points("#layers") == 1
    visit.page.locator("#next").click()
    assert visit.page.locator("#facts").inner_text() != first
    visit.page.locator("#jobs").select_option(label="fp w32a32 · 00000000")
    assert "no diagnosis" in visit.page.locator("#problem").inner_text()
    assert visit.page.locator("#steps-figure").is_hidden()
    options = visit.page.locator("#jobs option")
    assert options.count() == len(bench.results()), "full precision stands in two tables and is one job"


def test_the_slider_wipes_from_full_precision_to_quantized(visit):
    slider, pair = visit.page.locator("#cut"), visit.page.locator("#grid .pair").first
    pair.scroll_into_view_if_needed()
    shots = {}
    for place in (0, 50, 100):
        slider.fill(str(place))
        shots[place] = pair.screenshot()
    assert len(set(shots.values())) == 3
    slider.focus()
    visit.page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "99"
    visit.page.locator("#heat").check()
    visit.page.locator("#grid canvas").first.wait_for()
    assert "5.00 or more of 255 grey levels" in visit.page.locator("#grid-note").inner_text()
    assert slider.is_disabled()
    visit.page.locator("#heat").uncheck()
    assert visit.page.locator("#grid canvas").count() == 0 and slider.is_enabled()


def test_the_slider_ends_show_the_images_themselves(visit):
    """At its right end a sample is full precision, read back from the screen pixel by pixel."""
    visit.page.locator("#cut").fill("100")
    drawn = visit.page.evaluate(
        """async () => {
          const image = document.querySelector('#grid .pair .reference img');
          await image.decode();
          const canvas = document.createElement('canvas');
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext('2d').drawImage(image, 0, 0);
          return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, 8).data].filter((_, i) => i % 4 == 0);
        }"""
    )
    assert drawn == [level % 200 for level in range(64)]
    assert REFERENCE in visit.page.evaluate("Object.keys(data.galleries.strips)")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_looks_right_in_both_themes_and_on_a_telephone(browser, page_file, scheme, width):
    visit = Visit(browser, page_file, scheme, width)
    page = visit.page

    def light() -> bool:
        levels = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        return sum(levels) > 3 * 128

    assert light() == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out to the right"
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()
    page.evaluate("scrollTo(0, 0)")
    keep_screenshot(page, f"page-{scheme}-{width}.png")
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme and light() == (scheme == "dark")
    visit.context.close()
    assert visit.complaints == []


def test_it_prints_with_its_plots(visit, tmp_path):
    visit.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    visit.page.emulate_media(media="print")
    assert visit.page.locator("nav").is_hidden()
    visit.page.emulate_media(media="screen")
    assert visit.page.locator("nav").is_visible()


@pytest.fixture(scope="module")
def parts_file(tmp_path_factory) -> Path:
    """Three models with every rung of the dose, and exponents from several numbers of samples."""
    bench = FindingsBench(tmp_path_factory.mktemp("parts") / "runs")
    for number, model in enumerate(("digits", "ladder_1", "ladder_2")):
        for place, rung in enumerate(RUNGS):
            own = [25 + number * place + 0.1 * ((number + place * index) % 5) for index in range(16)]
            bench.rung(model, rung, float(np.mean(own)), 2.0 + number, per_image=own)
    for selection in ("vote", "mse"):
        for samples in (64, 256):
            method = {"name": "dmq", "stages": [POWERS], POWERS: {"selection": selection, "samples": samples}}
            found = {SCALING: scaling(), POWERS: powers(selection, samples)}
            bench.made("dmq", "w4a4", 30.0, found, config={"method": method}, protocol={"n": 16})
    return write_page(bench.root, bench.results(), bench.root / "report.html")


def until(page, condition):
    """Wait for a condition; Playwright's own waiting evaluates code inside the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def test_what_the_parts_of_a_method_do_is_drawn(browser, parts_file):
    visit = Visit(browser, parts_file)
    page = visit.page
    assert visit.points("[data-part=dose]") >= 2 * 4 * 3 and visit.points("[data-part=samples]") >= 2 * 2
    assert "ranges step" in page.locator("#parts .note").first.inner_text()
    page.locator("tr[data-method=dmq] button.open").first.click()
    assert visit.points("#ranges") >= 4 * 5
    assert page.locator("#ranges .ytitle").text_content() == "input"
    layers = page.locator("#ranges-layer")
    layers.select_option(index=1)
    chosen = layers.input_value()
    page.locator("#next").click()
    page.locator("#previous").click()
    assert layers.input_value() == chosen, "it stays chosen from job to job"
    for name in ("weights", "exponents", "agreement"):
        place = page.locator(f"#{name}:visible")
        if place.count():
            place.scroll_into_view_if_needed()
            place.locator(".main-svg").first.wait_for()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("scrollTo(0, 0)")
        until(page, "document.documentElement.scrollWidth <= innerWidth")
        keep_screenshot(page, f"parts-{width}.png")
    page.locator("tr[data-method=q_diffusion] button.open").first.click()
    assert page.locator("#ranges-figure").is_hidden() and page.locator("#exponents-figure").is_hidden()
    visit.context.close()
    assert visit.complaints == [] and all(request.startswith(("file:", "data:")) for request in visit.requests)


def test_calibration_over_several_steps_is_drawn(browser, tmp_path):
    bench = FindingsBench(tmp_path / "runs")
    for horizon, gradient in ((None, "identity"), (1, "identity"), (2, "identity"), (2, "replayed")):
        bench.trial(horizon, gradient, diagnosis=diagnosis(), found={"ratio": 1.0} if horizon else {})
    visit = Visit(browser, write_page(bench.root, bench.results(), bench.root / "report.html"))
    page = visit.page
    for varied in ("horizon", "gradient"):
        assert visit.points(f"[data-part={varied}]") >= 4 * 2
        titles = page.locator(f"[data-part={varied}] .ytitle, [data-part={varied}] [class^=y][class$=title]")
        assert {"dB over un-tuned", "cosine"} <= set(titles.all_text_contents())
    reader = FindingsReader(bench.root)
    untuned = next(row for row in bench.results() if reader.of(row, TrajectoryReconstruction) is None)
    tuned = next(row for row in bench.results() if reader.of(row, TrajectoryReconstruction) is not None)
    page.locator("#jobs").select_option(tuned.folder.name)
    assert visit.points("#ends") >= 2 and visit.points("#gradients") >= 2
    page.locator("#jobs").select_option(untuned.folder.name)
    assert page.locator("#ends-figure").is_hidden() and page.locator("#gradients-figure").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    visit.context.close()
    assert visit.complaints == []
