"""What a user does on the page, for tests in a browser; `tab` is Playwright's page."""

import cv2
import nibabel as nib
import numpy as np
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")


def says(tab, text):
    try:
        tab.wait_for_function("text => document.getElementById('message').textContent.includes(text)", arg=text)
    except sync_api.TimeoutError:
        pytest.fail(f"waited for {text!r}; the page says {tab.inner_text('#message')!r}; log: {tab.inner_text('#log')}")


def press(tab, *keys):
    for key in keys:
        tab.keyboard.press(key)


def submit(tab, command, **fields):
    """Fills a form's fields as a user does, and presses its button."""
    form = tab.locator(f"form[data-command={command}]")
    if not form.is_visible():
        tab.click(f"details:has(form[data-command={command}]) > summary")
    for name, value in fields.items():
        field = form.locator(f"[name={name}]")
        if isinstance(value, bool):
            field.set_checked(value)
        elif field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    form.locator("button").first.click()


def place(tab):
    """Returns where the crosshair is, as the page says it: RAS mm."""
    return [float(one) for one in tab.inner_text("#place").split(" mm")[0].split(", ")]


def drag(tab, start, end):
    """Drags the left button over the picture, between shares of its width and height."""
    box = tab.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    tab.mouse.move(*places[1], steps=4)
    tab.mouse.up()


def downloaded(tab, selector):
    with tab.expect_download() as download:
        tab.click(selector)
    return download.value.path().read_bytes()


def ids(path):
    return np.asarray(nib.load(path).dataobj)


def picture(tab):
    return cv2.imdecode(np.frombuffer(tab.locator("#canvas").screenshot(), np.uint8), cv2.IMREAD_COLOR).astype(int)
