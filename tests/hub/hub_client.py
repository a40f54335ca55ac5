"""Child processes that talk to the local Hub over HTTP with the real huggingface_hub."""

import json
import os
import re
import subprocess
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from hub_server import FakeHub

TOKEN = "hf_goodtokenofthetests"


@dataclass
class Done:
    """A script that has run."""

    status: int
    output: str

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1]


@dataclass
class Client:
    """Runs scripts against the Hub, each in its own process; `home` holds its cache, `cwd` its files."""

    hub: FakeHub
    process: subprocess.Popen
    home: Path
    cwd: Path
    outputs: list[str] = field(default_factory=list)

    def run(self, code: str, *, token: str | None = TOKEN, status: int = 0, **env: str) -> Done:
        env = {"HF_TOKEN": token or "", **env}
        output = self.cwd.parent / "output.txt"
        job = {"code": textwrap.dedent(code), "env": env, "cwd": str(self.cwd), "output": str(output)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        done = Done(int(self.process.stdout.readline()), output.read_text())
        self.outputs.append(done.output)
        assert done.status == status, done.output
        return done

    def error(self, code: str, **kwargs) -> str:
        """The one line of the error that a script ends with; it has to be a HubError or one of the built-in ones."""
        done = self.run(code, status=1, **kwargs)
        line = done.last_line
        assert re.match(
            r"(sae_lens_afa\.hub\._errors\.HubError|ValueError|FileNotFoundError|FileExistsError|TypeError): ", line
        ), line
        return line.partition(": ")[2]

    def program(self, path: Path, *args: str, **kwargs) -> Done:
        """Run a Python file as one would at the prompt."""
        argv = [str(path), *args]
        code = f"import runpy, sys; sys.argv[:] = {argv!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        return self.run(code, **kwargs)

    def command(self, *args: str, **kwargs) -> Done:
        """Run the command `sae-lens-afa`."""
        return self.run(
            f"import sys; sys.argv[1:] = {list(args)!r}; from sae_lens_afa.cli import main; main()", **kwargs
        )


def environment(hub: FakeHub, home: Path, *, xet: bool) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **inherited,
        **hub.env(str(home), token=None, xet=xet),
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "OMP_NUM_THREADS": "1",
    }
