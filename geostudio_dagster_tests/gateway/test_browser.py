"""The map page as people see it: headless Chromium against a served gateway."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.signing import map_link
from geostudio_dagster_tests.gateway.conftest import REQUEST, World, open_world, publish_both
from geostudio_dagster_tests.gateway.test_layers import place

pytestmark = pytest.mark.live

LAND, WATER = (217, 194, 126), (31, 120, 180)
GREEN, NAVY = (90, 140, 60), (20, 40, 80)
PATIENCE_MS = 120_000  # what is drawn in software takes its time on a busy machine
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield launched
        launched.close()


@contextmanager
def serving(world: World) -> Iterator[str]:
    """The gateway over a world, served on a free port of loopback; its address."""
    app = create_app(world.settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class MapPage:
    """An open map page and everything that it asked for or complained about."""

    page: Page
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, browser: Browser, width: int = 900, height: int = 600) -> MapPage:
        """An empty window."""
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        window = cls(page)

        def console(message: ConsoleMessage) -> None:
            if message.type in {"error", "warning"} and "GPU stall" not in message.text:
                window.complaints.append(message.text)

        page.on("request", lambda request: window.requested.append(request.url))
        page.on("console", console)
        page.on("pageerror", lambda error: window.complaints.append(str(error)))
        return window

    def show(self, url: str) -> None:
        """Open a map page and wait until it is drawn."""
        self.requested.clear()
        self.complaints.clear()
        self.page.goto(url)
        self.settle()

    def settle(self) -> None:
        """Wait until the map has drawn everything."""
        self.page.wait_for_selector("body[data-state=ready]")
        self.page.evaluate(
            """() => new Promise((done) => {
                const map = document.getElementById('map').maplibre;
                map.once('idle', done);
                map.triggerRepaint();
            })"""
        )

    def colour(self, column: float, row: float) -> tuple[int, int, int]:
        """Colour on the screen where a pixel position of the test rasters is projected to."""
        x, y = self.screen(column, row)
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        red, green, blue = picture.getpixel((round(x), round(y)))
        return red, green, blue

    def screen(self, column: float, row: float) -> tuple[float, float]:
        """Where a pixel position of the test rasters is on the screen."""
        point = self.page.evaluate(
            "(at) => document.getElementById('map').maplibre.project(at)", list(place(column, row))
        )
        return point["x"], point["y"]


def test_a_signed_link_is_all_that_a_browser_needs(world: World, browser: Browser) -> None:
    publish_both(world)
    world.settings = world.settings.model_copy(update={"gateway": GatewaySettings()})
    link = urlsplit(map_link(world.settings, REQUEST))
    with serving(world) as address:
        opened = MapPage.on(browser)
        opened.show(f"{address}{link.path}?{link.query}")
        assert near(opened.colour(200, 100), WATER)
        opened.page.get_by_role("button", name="Read at the centre").click()
        opened.page.wait_for_selector("#value .found")
        assert opened.complaints == []
        opened.page.close()


def near(colour: Sequence[float], wanted: Sequence[float]) -> bool:
    return all(abs(have - want) <= 2 for have, want in zip(colour, wanted, strict=True))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway with a published request."""
    with open_world(tmp_path_factory.mktemp("published")) as world:
        publish_both(world)
        with serving(world) as url:
            yield url


@pytest.fixture(scope="module")
def window(browser: Browser) -> MapPage:
    """One window for all, so that scripts are loaded once."""
    return MapPage.on(browser)


@pytest.fixture
def shown(window: MapPage, address: str) -> MapPage:
    """The published request's map page, opened afresh and drawn."""
    window.show(f"{address}/maps/{REQUEST}")
    return window


def test_the_map_shows_the_classes_where_they_are(shown: MapPage, address: str) -> None:
    assert near(shown.colour(70, 100), LAND)
    assert near(shown.colour(200, 100), WATER)
    # A transparent class shows the input beneath it.
    assert near(shown.colour(70, 240), GREEN)
    # Nothing was asked of anybody else, and nothing went wrong.
    assert [url for url in shown.requested if not url.startswith((address, "blob:", "data:"))] == []
    assert shown.complaints == []


def test_the_legend_names_classes_with_their_shares(shown: MapPage) -> None:
    rows = [row.inner_text().split("\n") for row in shown.page.locator("#legend li").all()]
    assert [row[0] for row in rows] == ["Land & soil", "Water <open>", "Cloud"]
    assert [row[1] for row in rows] == [
        "42.9 % · 276 ha",
        "44.4 % · 287 ha",
        "12.7 % · 81.92 ha",
    ]
    assert shown.page.locator("h1").inner_text() == "Danube <b>wetlands</b> & June"
    assert "demo-water@1" in shown.page.locator("#about").inner_text()
    assert shown.page.locator("#status").inner_text() == "submitted"


def test_opacity_blends_the_prediction_with_the_input(shown: MapPage) -> None:
    slider = shown.page.get_by_label("Opacity")
    slider.fill("50")
    shown.settle()
    blended = tuple((a + b) / 2 for a, b in zip(WATER, NAVY, strict=True))
    assert near(shown.colour(200, 100), blended)
    assert shown.page.locator("#layers output").inner_text() == "50 %"
    slider.press("ArrowLeft")
    assert shown.page.locator("#layers output").inner_text() == "49 %"
    slider.press("Home")
    shown.settle()
    assert near(shown.colour(200, 100), NAVY)


def test_layers_can_be_hidden(shown: MapPage) -> None:
    shown.page.get_by_label("Water", exact=True).uncheck()
    shown.settle()
    assert near(shown.colour(70, 100), GREEN)
    shown.page.get_by_label("Input image").uncheck()
    shown.settle()
    assert not near(shown.colour(70, 100), GREEN)


def test_comparing_shows_the_input_left_of_the_divider(shown: MapPage) -> None:
    shown.page.get_by_label("Compare side by side").check()
    shown.page.wait_for_selector("#compare[data-state=ready]")
    divider = shown.page.get_by_label("Divider")
    divider.focus()
    divider.press("End")
    assert near(shown.colour(70, 100), GREEN)
    assert near(shown.colour(200, 100), NAVY)
    divider.press("Home")
    assert near(shown.colour(70, 100), LAND)
    assert near(shown.colour(200, 100), WATER)


def test_a_click_tells_the_class(shown: MapPage) -> None:
    shown.page.mouse.click(*shown.screen(200, 100))
    shown.page.wait_for_selector(".maplibregl-popup")
    assert "Water <open>" in shown.page.locator("#value").inner_text()
    assert "48." in shown.page.locator(".maplibregl-popup .place").inner_text()
    assert shown.complaints == []


def test_values_can_be_read_by_keyboard(shown: MapPage) -> None:
    button = shown.page.get_by_role("button", name="Read at the centre")
    button.focus()
    button.press("Enter")
    shown.page.wait_for_selector("#value .place")
    assert shown.page.locator("#value .found").count() == 1


def test_results_appear_while_the_page_is_open(world: World, browser: Browser) -> None:
    with serving(world) as address:
        opened = MapPage.on(browser)
        opened.show(f"{address}/maps/{REQUEST}")
        assert "first results appear here" in opened.page.locator("#notice").inner_text()
        publish_both(world)
        opened.page.wait_for_selector("#legend li")
        opened.page.wait_for_selector("body[data-bounds=shown]")
        opened.settle()
        assert near(opened.colour(200, 100), WATER)
        opened.page.close()


def test_a_narrow_screen_shows_map_and_legend(browser: Browser, address: str) -> None:
    opened = MapPage.on(browser, width=380, height=760)
    opened.show(f"{address}/maps/{REQUEST}")
    panel = opened.page.locator("#panel").bounding_box()
    assert panel is not None
    assert (panel["x"], panel["width"]) == (0, 380)
    assert panel["y"] > 300
    assert near(opened.colour(200, 100), WATER)
    _, y = opened.screen(128, 250)
    assert y < panel["y"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 380
    opened.page.close()
