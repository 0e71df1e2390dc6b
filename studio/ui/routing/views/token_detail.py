"""One token in every layer, with its experts and gates in each kind of router."""

from studio.ui.routing.routing_panel import View

VIEW = View("token_detail", order=20)
