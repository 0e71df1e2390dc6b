"""Maps of layers and experts for all kinds of router, for one token or summed, with the chance level."""

from studio.ui.routing.routing_panel import View

VIEW = View("expert_map", order=30)
