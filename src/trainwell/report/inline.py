"""A run in a notebook: its verdict and its curves as one piece of HTML with pictures inside, without a script."""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

from trainwell.errors import TrainwellError
from trainwell.report.load import load_run
from trainwell.report.plots import loss_picture, rate_picture
from trainwell.report.verdict import verdict
from trainwell.runs.console import safe
from trainwell.runs.rundir import is_run


def inline(path: Path) -> str:
    """The run in a folder as HTML; a sentence where it has not begun, or cannot be read."""
    if not is_run(path):
        return _said(f"{path}: not started; tw.fit(run) trains it")
    try:
        run = load_run(path)
        if not run.train:
            return _said(f"{path}: {run.status}")
        pictures = [loss_picture(run), rate_picture(run)]
    except TrainwellError as error:
        return _said(str(error))
    images = []
    for picture, about in zip(pictures, ("loss over steps", "learning rate over steps"), strict=True):
        stored = BytesIO()
        picture.savefig(stored, format="png", dpi=80)
        data = b64encode(stored.getvalue()).decode()
        images.append(f'<img alt="{about}" style="max-width:100%" src="data:image/png;base64,{data}">')
    return f"{_said(f'{path}: {run.status}')}{_said(verdict(run))}{''.join(images)}"


def _said(text: str) -> str:
    return f"<p>{escape(safe(text))}</p>"
