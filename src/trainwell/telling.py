"""What a run says and draws when it is over: its verdict, its plots, its report."""

from collections.abc import Iterator
from contextlib import contextmanager

from trainwell.errors import DivergedError, StorageError
from trainwell.report.load import RunData, load_run
from trainwell.report.plots import write_plots
from trainwell.report.verdict import verdict
from trainwell.run import Run


def tell(run: Run) -> None:
    """Say what the run amounts to and where its newest checkpoint is; draw it."""
    data = load_run(run.run_dir.path)
    run.console.message(verdict(data))
    run.console.message(f"checkpoint: {run.run_dir.shown}/checkpoints/step-{run.trainer.step}")
    if not run.stopped or run.finished:
        _draw(run, data)  # whoever stops a run waits for it


def _draw(run: Run, data: RunData) -> None:
    """Write the plots and the report; a run that was trained is not lost with a picture of it."""
    if not run.config.log.plots:
        return
    try:
        plots = write_plots(data)
        if plots:
            run.console.message(f"plots: {', '.join(f'{run.run_dir.shown}/plots/{plot.name}' for plot in plots)}")
        from trainwell.report.run_page import write_report  # here, since Bokeh takes half a second to import

        run.console.message(f"report: {run.run_dir.shown}/{write_report(data).name}")
    except (OSError, StorageError) as error:
        run.console.message(f"no plots or report: {error}")
    except ModuleNotFoundError as error:
        if error.name != "bokeh":
            raise
        run.console.message(f"no report: {error}; pip install bokeh, then trainwell show {run.run_dir.shown}")


@contextmanager
def drawn_when_diverged(run: Run) -> Iterator[None]:
    """Whoever reads that a run has diverged wants to see it."""
    try:
        yield
    except DivergedError:
        if run.world.main:
            _draw(run, load_run(run.run_dir.path))
        raise
