"""The text, token by token, coloured and numbered by the strongest unit of the chosen router."""

from studio.ui.routing.routing_panel import View

VIEW = View("token_strip", order=10)
