"""A local Hub and a client of it for each test."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub_client import TOKEN, Client, environment
from hub_server import FakeHub

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def _server(tmp_path_factory):
    """One Hub and one fork server for all tests; HF_HOME is a link, to a new folder for each test."""
    folder = tmp_path_factory.mktemp("hub")
    with FakeHub(users={TOKEN: "me", "hf_other": "other"}) as hub:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")], env=environment(hub, folder / "home", xet=False),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "ready\n"
        yield hub, process, folder / "home"
        process.stdin.close()
        process.wait()


@pytest.fixture
def hub(_server) -> FakeHub:
    hub = _server[0]
    hub.reset()
    return hub


@pytest.fixture
def client(_server, hub, tmp_path):
    _, process, link = _server
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    link.unlink(missing_ok=True)
    link.symlink_to(home)
    client = Client(hub, process, home, cwd)
    yield client
    # Of every test: the token goes to the Hub alone, and is never printed.
    assert not any(TOKEN in output for output in client.outputs)
    assert all(request.authorization is None for request in hub.requests if not hub.url.endswith(request.host))
