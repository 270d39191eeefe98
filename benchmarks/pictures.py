"""Pictures of pages for the docs, from real runs.

    trainwell train demo
    trainwell train demo --duration 300 --eval.every 100 --each optim.lr=3e-4,1e-3,3e-3,1e-2,3e-2 \\
        --each schedule.warmup=5%,0 --each optim.max_grad_norm=1.0,none --each seed=1,2,3 -j 2 --run runs/lr
    python -m benchmarks.pictures runs/demo runs/lr
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.browser import chromium, wait_ready

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH = 1120


def main(run: str, grid: str) -> None:
    """Write docs/images/report.png, report-dark.png, index.png and compare.png."""
    compared = Path(grid) / "compare.html"
    for words in (["show", run], ["show", grid], ["compare", grid, "--by", "optim.lr", "-o", str(compared)]):
        subprocess.run([sys.executable, "-m", "trainwell", *words], check=True, stdout=subprocess.DEVNULL)
    report = Path(run) / "report.html"
    shots = (
        ("report", report, False, None, 1150),
        ("report-dark", report, True, "#curves", 900),
        ("index", Path(grid) / "index.html", False, None, 620),
        ("compare", compared, False, "#chart-key", 400),
    )
    with chromium() as browser:
        for name, file, dark, place, height in shots:
            viewport = {"width": WIDTH, "height": height}
            page = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light").new_page()
            page.goto(file.resolve().as_uri())
            wait_ready(page)
            if place is not None:
                page.evaluate(
                    f"document.querySelector({place!r}).scrollIntoView({{behavior: 'instant'}}); scrollBy(0, -16)"
                )
            page.wait_for_timeout(500)
            page.screenshot(path=IMAGES / f"{name}.png")
            print(f"wrote {IMAGES / name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
