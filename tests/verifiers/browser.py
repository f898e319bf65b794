"""Drives Chromium for several people, each in a context of their own.

    browser.py PEOPLE

PEOPLE is an object of names and their SOCKS proxies. Each line of standard input is what one of
them does, {"as": NAME, "open": URL} or {"as": NAME, "press": LABEL}; each line of standard output
is what they see then, or {"error": …}. Programs on loopback are reached without a proxy.
"""

import json
import shutil
import sys

from playwright.sync_api import Error, sync_playwright

PATIENCE_MS = 15_000


def act(page, action):
    if "open" in action:
        answer = page.goto(action["open"])
    else:
        label = action["press"]
        named = page.get_by_role("button", name=label, exact=True)
        named = named.or_(page.get_by_role("link", name=label, exact=True))
        # A page is whole once it was navigated to, so that what is not there will not come.
        if not named.count():
            return {"error": f"no {label}", "url": page.url, "page": page.content()}
        with page.expect_navigation() as navigation:
            named.click()
        answer = navigation.value
    return {
        "url": page.url,
        "status": answer.status if answer else None,
        "title": page.title(),
        "text": page.locator("body").inner_text(),
    }


def main(people):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # In a container the browser is root, and /dev/shm small.
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        pages = {}
        for name, proxy in people.items():
            context = browser.new_context(
                proxy={"server": proxy, "bypass": "localhost,127.0.0.1"},
                ignore_https_errors=True,
            )
            context.set_default_timeout(PATIENCE_MS)
            pages[name] = context.new_page()
        for line in sys.stdin:
            action = json.loads(line)
            page = pages[action["as"]]
            try:
                seen = act(page, action)
            except Error as error:
                seen = {"error": str(error), "url": page.url}
            print(json.dumps(seen), flush=True)
        browser.close()


main(json.loads(sys.argv[1]))
