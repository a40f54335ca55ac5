"""Plots of evaluations: matplotlib figures for files, plotly pages (`save="x.html"`) for the browser.

matplotlib, plotly and pandas are imported when a plot is drawn, not before.
"""

from sae_lens_afa.plots.figures import eps_lbo_plot, zf_plot
from sae_lens_afa.plots.frontiers import l0_plot, samples_plot

__all__ = ["eps_lbo_plot", "l0_plot", "samples_plot", "zf_plot"]
