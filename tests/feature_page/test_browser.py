"""The page in a browser: found, sorted, opened, and never run by what it shows."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from page_helpers import CONTEXT
from sae_lens import ActivationsStore
from sae_lens.saes.sae import SAEMetadata

import sae_lens_afa as afa
from sae_lens_afa.demo import load_text

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium or another")]
# Offline, and nothing of the browser's own business; --no-sandbox, as it may be root who tests.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
EVIL = "<script>document.title = 'seized'</script><img src=x onerror=\"document.title = 'seized'\">"


@pytest.fixture(scope="module")
def report(model, tmp_path_factory):
    """The page of a pursuit with random rows, on a text that tries to take over."""
    torch.manual_seed(0)
    about = SAEMetadata(hook_name="blocks.2.hook_resid_pre", context_size=CONTEXT, prepend_bos=True)
    sae = afa.AFAPursuitSAE(afa.AFAPursuitSAEConfig(d_in=192, d_sae=128, threshold_scale=0.6, metadata=about))
    sae.W_dec.data[7] = 0  # dead
    text = Dataset.from_dict({"text": [EVIL, *load_text().train[:20]]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ActivationsStore.from_sae(model, sae, text, streaming=False, store_batch_size_prompts=8)
    folder = tmp_path_factory.mktemp("page") / "features"
    return afa.features(sae, store, model, folder, tokens=2048, name=EVIL, progress=False)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, report):
    """The page, opened as a file; no error may come up, and no request go out."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.page.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    yield page
    assert page.evaluate("document.title") == f"{EVIL} at blocks.2.hook_resid_pre"
    page.close()
    assert errors == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}


def shown_latents(page) -> list[int]:
    return [int(row.get_attribute("data-latent")) for row in page.query_selector_all("#rows tr")]


def test_the_table_begins_with_most_energy_and_has_no_dead_latents(page, report):
    alive = report.table[~report.table["is_dead"]].sort_values("energy_share", ascending=False, kind="stable")
    assert shown_latents(page) == alive["latent"].tolist()[:50]
    assert page.inner_text("#count") == f"{len(alive)} of 128 latents"
    assert report.table["is_dead"][7]
    page.check("#dead")
    assert page.inner_text("#count") == "128 of 128 latents"


@pytest.mark.parametrize(("heading", "column"), [("density", "density"), ("mean", "mean"), ("max", "max"),
                                                 ("latent", "latent")])  # fmt: skip
def test_columns_sort_both_ways(page, report, heading, column):
    alive = report.table[~report.table["is_dead"]]
    for direction in ("descending", "ascending") if column != "latent" else ("ascending", "descending"):
        page.click(f"th button:text-is('{heading}')")
        assert page.get_attribute(f"th:has(button:text-is('{heading}'))", "aria-sort") == direction
        values = report.table[column].to_numpy()[shown_latents(page)]
        step = np.diff(values) if direction == "ascending" else -np.diff(values)
        assert bool((step >= -1e-6).all())
        end = alive[column].min() if direction == "ascending" else alive[column].max()
        assert values[0] == pytest.approx(end)


def test_pages_of_the_table_turn(page, report):
    first = shown_latents(page)
    page.click("#on")
    second = shown_latents(page)
    assert len(second) == 50
    assert not set(first) & set(second)
    page.click("#back")
    assert shown_latents(page) == first
    assert page.is_disabled("#back")


def test_a_number_finds_its_latent_dead_or_not(page, report):
    for latent in (7, 23):
        page.fill("#search", str(latent))
        assert shown_latents(page)[0] == latent
    page.fill("#search", "no token has this text")
    assert shown_latents(page) == []
    assert page.inner_text("#page") == "none"


def test_a_text_finds_the_latents_that_respond_to_it(page, report):
    words = report.table[~report.table["is_dead"]]["token"].str.strip()
    word = words[words.str.len() > 3].iloc[0]
    page.fill("#search", word.lower())
    found = shown_latents(page)
    assert set(words.index[words == word]) <= set(found)
    assert len(found) < 128


def test_a_latent_s_card(page, report):
    latent = shown_latents(page)[0]
    page.click(f"#rows tr[data-latent='{latent}'] td:nth-child(2)")
    assert page.evaluate("location.hash") == f"#latent={latent}"
    card = page.inner_text("#card")
    assert card.startswith(f"Latent {latent}")
    for part in ("Strongest, each in another prompt", "Activations", "strongest quarter", "Promotes", "Suppresses",
                 "Nearest", "Active together"):  # fmt: skip
        assert part in card
    contexts = page.query_selector_all("#card .context")
    assert len(contexts) == 22
    marked = contexts[0].query_selector("b")
    assert marked.inner_text().strip() == report.table["token"][latent].replace("\n", "⏎").strip()
    assert "rgba(213, 94, 0, 0.85)" in marked.evaluate("element => getComputedStyle(element).backgroundColor")
    assert page.query_selector("#histogram .plot-container") is not None
    # A neighbour leads to its own card, and the browser's back button to this one.
    neighbour = page.get_attribute("#card .columns:last-child a", "href")
    page.click("#card .columns:last-child a")
    page.wait_for_function(f"location.hash === '{neighbour}'")
    page.wait_for_function(f"document.querySelector('#card h2').textContent === 'Latent {neighbour.split('=')[1]}'")
    page.go_back()
    page.wait_for_function(f"document.querySelector('#card h2').textContent === 'Latent {latent}'")


def test_a_dead_latent_says_so(page):
    page.evaluate("location.hash = 'latent=7'")
    page.wait_for_selector("#card h2")
    assert "dead" in page.inner_text("#card")
    assert page.query_selector("#card .context") is None


def test_a_token_is_taken_apart(page):
    page.click("#to-tokens")
    page.wait_for_selector("#token-text button")
    page.click("[data-token='3']")
    page.wait_for_selector("#token-card tbody tr")
    assert "‖f‖ / ‖z‖" in page.inner_text("#token-card")
    assert "stage" in page.inner_text("#token-card thead")
    latent = page.inner_text("#token-card tbody tr a")
    page.click("#token-card tbody tr a")
    page.wait_for_function(f"document.querySelector('#card h2')?.textContent === 'Latent {latent}'")
    assert page.is_visible("#latents")
    assert not page.is_visible("#tokens")


def test_what_the_text_says_is_shown_and_not_run(page):
    page.click("#to-tokens")
    text = page.inner_text("#token-text")
    assert "<script>" in text.replace("\n", "")
    assert page.query_selector("#token-text img, #token-text script, #card img") is None
    assert page.query_selector("h1 script, h1 img") is None
    assert EVIL in page.inner_text("h1")


def test_an_unknown_address_shows_the_table(page):
    for where in ("latent=9999", "latent=x", "token=99999", "%3Cscript%3E"):
        page.evaluate(f"location.hash = '{where}'")
        page.wait_for_timeout(50)
    assert page.query_selector("#card h2") is None


def test_on_a_narrow_screen_the_card_comes_first(browser, report):
    page = browser.new_page(viewport={"width": 420, "height": 800})
    page.goto(report.page.as_uri() + "#latent=3")
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    card, table = (page.query_selector(which).bounding_box() for which in ("#card", "#list"))
    assert card["y"] < table["y"]
    assert card["width"] <= 420
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.close()
