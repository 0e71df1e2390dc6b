"""The most likely tokens in the place of the pinned one, with their probabilities, and a branch from each."""

from studio.ui.routing.routing_panel import View

VIEW = View("alternatives", order=15)
