"""The same numbers as tables, for screen readers and for copying."""

from studio.ui.routing.routing_panel import View

VIEW = View("tables", order=40)
