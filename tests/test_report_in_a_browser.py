"""The page of a run in Chromium: no error, values on hover and by keyboard, dark, narrow, and as axe-core sees it."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import run_here, violations


@pytest.fixture(scope="module")
def written(finished_pipeline, tmp_path_factory):
    """The page of the tiny pipeline, and one of two runs."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(finished_pipeline, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "run")
        shutil.copytree("runs/digits", "runs/other")
        assert run_here("evaluate", "gpt", "--dataset", "digits").code == 0
        assert run_here("report", "runs/digits").code == 0
        assert run_here("report", "--compare", "runs/digits", "runs/other").code == 0
    return [folder / "run" / Path(name) for name in ("runs/digits/report.html", "runs/comparison.html")]


def open_page(browser, path, width=1100, **options):
    page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file", "data")) else None
    )
    page.goto(path.as_uri())
    return page, said


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_its_window_and_says_nothing_on_the_console(browser, written, which, width):
    page, said = open_page(browser, written[which], width)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert said == []


def test_values_are_shown_on_hover(browser, written):
    page, _ = open_page(browser, written[0])
    point, value = page.locator("[data-value]").first, page.locator("#value")
    assert value.is_hidden()
    point.hover()
    assert value.inner_text() == point.get_attribute("data-value")
    page.mouse.move(0, 0)
    assert value.is_hidden()


def test_values_can_be_reached_by_keyboard_alone(browser, written):
    page, _ = open_page(browser, written[0])
    focused = "document.activeElement.dataset.value"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.parentElement.querySelectorAll('[data-value]').length") == 2:
            break
    first = page.evaluate(focused)
    assert page.locator("#value").inner_text() == first
    page.keyboard.press("ArrowRight")
    second = page.evaluate(focused)
    assert second != first
    assert page.locator("#value").inner_text() == second
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == first
    page.keyboard.press("Escape")
    assert page.locator("#value").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", [0, 1])
def test_axe_finds_nothing(browser, written, which, scheme):
    page, _ = open_page(browser, written[which], 360, color_scheme=scheme, bypass_csp=True)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)"
    assert dark == (scheme == "dark")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(page) == []
