"""Views of a run: learning curves, and an HTML page of its rollouts."""

from .curves import plot_learning_curve, plot_runs, read_log
from .page import render_page


__all__ = ["plot_learning_curve", "plot_runs", "read_log", "render_page"]
