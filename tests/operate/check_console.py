"""Opens the console in a browser and looks at what it shows.

check_console.py CHROMIUM HTTP_PORT DIRECTORY: a server with the shipped sql/ and records that come runs at the port. Screenshots
are put into the directory.
"""

import pathlib
import re
import shutil
import sys

from playwright.sync_api import expect, sync_playwright

CHROMIUM, HTTP_PORT, DIRECTORY = shutil.which(sys.argv[1]), *sys.argv[2:4]
PAGE = f"http://127.0.0.1:{HTTP_PORT}/"
PATIENCE = 60_000


def tile(page, name):
    return page.locator(".tile", has=page.locator("dt", has_text=name)).locator("dd")


def check(page, theme):
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(PAGE)
    expect(page.locator("#state")).to_have_text(re.compile("up to date|catching up"))
    expect(tile(page, "Counted, in all")).not_to_have_text("0")
    expect(page.locator("#rate path")).to_have_count(3)
    expect(tile(page, "Records per second")).not_to_have_text("0")
    expect(tile(page, "The books")).to_have_text("balance")
    expect(page.locator("#lag tbody tr")).to_have_count(3)
    expect(page.locator("#lag tbody tr").first.locator("td")).to_have_count(12)
    expect(page.locator("#books tbody tr")).to_have_count(3)
    expect(page.locator("#refreshes svg rect").first).to_be_visible()
    expect(page.locator("#quarantine tbody tr").first).to_be_visible()

    # What sql/console has: two parts of each video, in the two colours of the legend.
    panel = page.locator("section", has=page.locator("h2", has_text="Most watched videos"))
    expect(panel.locator("svg rect.s1").first).to_be_attached()
    expect(panel.locator(".legend li")).to_have_text(["batch", "speed"])
    for title in ["Views by hour", "Countries by their views", "Ads by what they earned"]:
        expect(page.locator("h2", has_text=title)).to_be_visible()

    # By keyboard alone: to the box, a statement, its rows and a chart; then one that is refused, and one that is stopped.
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.type("SELECT quality, count(*) AS views FROM raw.video_views GROUP BY quality ORDER BY views DESC")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#told")).to_have_text(re.compile(r"^[1-9]\d* rows in \d+ ms"))
    expect(page.locator("#answer th").first).to_have_text("quality")
    expect(page.locator("#drawn svg rect").first).to_be_attached()
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=f"{DIRECTORY}/console-{theme}.png", full_page=True)
    page.locator("#query").fill("SELECT nothing FROM video_views")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#told")).to_have_text("refused")
    expect(page.locator("#answer .bad")).to_contain_text("nothing")
    expect(page.locator("#drawn svg")).to_have_count(0)
    page.locator("#query").fill("SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.locator("#told")).to_have_text("stopped")

    # What a record holds is text to the page.
    page.locator("#query").fill("SELECT '<img src=x onerror=document.title=1>' AS raw, 1 AS n UNION ALL SELECT '<b>', 2 ORDER BY n")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answer tbody td").first).to_have_text("<img src=x onerror=document.title=1>")
    assert page.title() == "Viewledger"

    outside = [url for url in requests if not url.startswith((PAGE, "data:"))]
    assert not outside, outside
    # The statement that was to be refused is told as a failed request.
    complaints = [text for text in complaints if "400 (Bad Request)" not in text]
    assert not complaints, complaints
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    small = page.evaluate("""() => [...document.querySelectorAll('h2, th, td, dt, dd, button, p')].filter(element => {
        const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
        let ground = element, colour;
        do { colour = rgb(getComputedStyle(ground).backgroundColor); ground = ground.parentElement; }
        while (ground && (colour.length === 4 && colour[3] < 1));
        const [a, b] = [light(rgb(getComputedStyle(element).color)), light(colour)].sort((x, y) => y - x);
        return element.textContent && element.offsetParent && (a + .05) / (b + .05) < 4.5;
    }).map(element => element.outerHTML.slice(0, 120))""")
    assert not small, f"too little contrast: {small[:5]}"


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme in ["light", "dark"]:
            page = browser.new_page(color_scheme=theme, viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            check(page, theme)
            other = {"light": "dark", "dark": "light"}[theme]
            page.locator("#theme").click()
            assert page.evaluate("document.documentElement.dataset.theme") == other
            page.close()
        narrow = browser.new_page(viewport={"width": 390, "height": 844})
        narrow.goto(PAGE)
        expect(narrow.locator("#lag tbody tr")).to_have_count(3)
        wide = narrow.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"the page is {wide} wide on a narrow screen"
        browser.close()
    assert all(pathlib.Path(DIRECTORY, f"console-{theme}.png").stat().st_size > 10_000 for theme in ["light", "dark"])
    print("the console shows the present, in light and dark")


if __name__ == "__main__":
    main()
