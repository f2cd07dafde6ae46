"""The page of `vqgpt serve` in Chromium: drawing, looking, painting by pointer and by keyboard; axe-core."""

import io
import re

import numpy as np
import pytest
from PIL import Image

import vqgpt
from tests.conftest import violations
from tests.serving import Server

REFUSAL = "the server responded with a status of 4"  # which Chromium says of each answer that the page shows in words


@pytest.fixture(scope="module")
def server(browser, copied_pipeline):
    server = Server(copied_pipeline)
    yield server
    assert server.stop() == 0


@pytest.fixture
def open_page(browser, server):
    """Opens the page; at the end nothing may have been said on the console, nor asked of another host."""
    said = []

    def listen(page):
        page.on("console", lambda message: None if REFUSAL in message.text else said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        elsewhere = (server.url, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(elsewhere) else said.append(request.url))

    def open_page(width=1100, path="/", **options):
        page = browser.new_context(viewport={"width": width, "height": 800}, **options).new_page()
        listen(page)
        page.goto(server.url + path)
        return page

    yield open_page
    assert said == []


def status(page, text):
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def drawn(page, images=16):
    page.locator("#num_samples").fill(str(images))
    page.get_by_role("button", name="Draw", exact=True).click()
    status(page, f"{images} images in")


def look_at(page, place):
    page.locator("#gallery button").nth(place).click()
    page.wait_for_selector("#nearest-figure:not([hidden])")
    assert page.locator("#problem").inner_text() == ""


def token_grid(page):
    rows = page.eval_on_selector_all(
        "#tokens tr", "rows => rows.map(row => [...row.cells].map(cell => +cell.firstChild.textContent))"
    )
    return np.array(rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_its_window_and_axe_finds_nothing(open_page, width, scheme):
    page = open_page(width, color_scheme=scheme, bypass_csp=True)
    status(page, "ready")
    drawn(page)
    look_at(page, 3)
    page.click("text=Token grid")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert violations(page) == []
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)") == (scheme == "dark")


def test_what_is_drawn_is_what_vqgpt_draws(open_page, copied_pipeline):
    page = open_page()
    status(page, "ready")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Classes").select_option(["3", "8"])
    drawn(page, 4)
    look_at(page, 3)
    assert page.locator("#caption").inner_text() == "8: image 3 of seed 7"
    expected = vqgpt.load_gpt(copied_pipeline / "runs/digits/gpt.pt").sample(4, ["3", "8"], seed=7, temperature=0.5)[3]
    assert np.array_equal(token_grid(page), expected)
    assert re.search(r"\d\.\d+ bits per token for it as 8", page.locator("#likelihood").inner_text())
    assert re.search(
        r"train/\d+ \(\d\), which differs in \d+ of 64 tokens", page.locator("#nearest-caption").inner_text()
    )
    page.get_by_role("button", name="Draw the next seed").click()
    status(page, "4 images in")
    assert page.get_by_label("Seed", exact=True).input_value() == "8"


def test_a_mask_is_painted_with_the_pointer_and_completed(open_page):
    page = open_page()
    status(page, "ready")
    drawn(page)
    look_at(page, 5)
    before = token_grid(page)
    complete = page.get_by_role("button", name="Draw what is marked")
    assert complete.is_disabled()
    page.locator("#paint").scroll_into_view_if_needed()
    box = page.locator("#paint").bounding_box()
    cell = box["width"] / 8
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 3.5 * cell)
    page.mouse.down()
    page.mouse.move(box["x"] + 5.5 * cell, box["y"] + 3.5 * cell, steps=10)
    page.mouse.up()
    complete.click()
    status(page, "8 images in")
    assert "none after it" in page.locator("#notices").inner_text()
    look_at(page, 1)
    kept = np.ones((8, 8), bool)
    kept[3, 2:6] = False
    assert (token_grid(page) == before)[kept].all()
    assert page.get_by_role("button", name="nine temperatures").is_disabled()  # it is no image of a seed alone


def test_all_of_it_works_by_keyboard(open_page):
    page = open_page()
    status(page, "ready")

    def tab_to(selector):
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached")

    tab_to("#draw")
    page.keyboard.press("Enter")
    status(page, "16 images in")
    tab_to("#gallery button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#nearest-figure:not([hidden])")
    before = token_grid(page)
    tab_to("#paint")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.locator("#cell").inner_text() == "row 2, column 2: drawn anew"
    tab_to("#complete")
    page.keyboard.press("Enter")
    status(page, "8 images in")
    look_at(page, 0)
    assert (token_grid(page) != before).sum() <= 1


def test_a_row_an_upload_and_halves(open_page):
    page = open_page()
    status(page, "ready")
    page.get_by_label("Row").fill("17")
    page.get_by_role("button", name="Show this row of the cache").click()
    page.wait_for_selector("#nearest-figure:not([hidden])")
    assert "differs in 0 of 64 tokens: the row itself" in page.locator("#nearest-caption").inner_text()
    assert page.get_by_role("button", name="nine temperatures").is_disabled()
    page.get_by_label("Row").fill("999999")
    page.get_by_role("button", name="Show this row of the cache").click()
    page.wait_for_function("() => document.getElementById('problem').textContent.includes('there is no row 999999')")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(buffer, "PNG")
    page.get_by_label("Your own image").set_input_files(
        {"name": "a.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    page.wait_for_function("() => document.getElementById('caption').textContent.includes('a.png')")
    page.get_by_role("button", name="Mark the lower half").click()
    page.get_by_role("button", name="Swap marked and kept").click()
    before = token_grid(page)
    page.get_by_role("button", name="Draw what is marked").click()
    status(page, "8 images in")
    look_at(page, 2)
    assert np.array_equal(token_grid(page)[4:], before[4:])
    page.get_by_label("Your own image").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"none"})
    page.wait_for_function("() => document.getElementById('problem').textContent.includes('b.png is no image')")


def test_a_seed_at_nine_temperatures(open_page, copied_pipeline):
    page = open_page()
    status(page, "ready")
    drawn(page)
    look_at(page, 6)
    page.get_by_role("button", name="nine temperatures").click()
    status(page, "image 6 of seed 0 at nine temperatures")
    captions = page.locator("#gallery span").all_inner_texts()
    assert captions == [f"temperature {step / 4:g}" for step in range(9)]
    look_at(page, 2)
    expected = vqgpt.load_gpt(copied_pipeline / "runs/digits/gpt.pt").sample(7, ["6"], temperature=0.5)[6]
    assert np.array_equal(token_grid(page), expected)


def test_what_is_refused_is_said(open_page):
    page = open_page()
    status(page, "ready")
    page.evaluate("document.getElementById('settings').noValidate = true")
    page.locator("#num_samples").fill("1000")
    page.get_by_role("button", name="Draw", exact=True).click()
    status(page, "1000 images are too many; ask for at most 64 at once")


def test_the_description_opens_without_a_network(open_page):
    page = open_page(path="/docs")
    page.get_by_text("/api/sample/stream").wait_for()
