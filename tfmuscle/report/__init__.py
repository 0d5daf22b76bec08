"""Pictures and pages about a result: training curves, box plots, overlays, one self-contained HTML file.

Figures are `matplotlib.figure.Figure` objects, drawn without pyplot: no window, no global state, nothing to close.
Names may come from a stranger's file: HTML is escaped, and in figures matplotlib's formula syntax is switched off.
"""

from tfmuscle.report.comparisons import difference_plot, model_boxes
from tfmuscle.report.figures import box_plot, figure_png, training_curves
from tfmuscle.report.histograms import histogram
from tfmuscle.report.overlays import informative_slices, overlay
from tfmuscle.report.page import Section, html_page
from tfmuscle.report.rendering import rendering

__all__ = [
    "Section",
    "box_plot",
    "difference_plot",
    "figure_png",
    "histogram",
    "html_page",
    "informative_slices",
    "model_boxes",
    "overlay",
    "rendering",
    "training_curves",
]
