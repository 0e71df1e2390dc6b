"""The numbers of the other views as tables, for screen readers and copying."""

from studio.ui.routing.routing_panel import View

VIEW = View("tables", order=40)
