"""Plug-ins for other programs; each is found by that program and imported only by it."""
