"""The tokens of the text, coloured and numbered by the strongest unit of the selected router."""

from studio.ui.routing.routing_panel import View

VIEW = View("token_strip", order=10)
