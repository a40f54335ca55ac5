"""A local Hub and a client of it for each test."""

from hub_fixtures import _server, client, hub

__all__ = ["_server", "client", "hub"]
