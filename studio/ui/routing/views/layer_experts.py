"""The experts of the selected router as a table: how often each is the strongest or selected, and its load."""

from studio.ui.routing.routing_panel import View

VIEW = View("layer_experts", order=25)
