"""A local Hub for the journeys that share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_fixtures import _server, client, hub

__all__ = ["_server", "client", "hub"]
