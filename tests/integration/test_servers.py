"""The servers that tests start."""

from pathlib import Path

import psutil

from tests.harness.processes import ROOT
from tests.harness.servers import Servers


def test_a_server_writes_no_file_into_the_repository(servers: Servers) -> None:
    """RabbitMQ writes MnesiaCore.* and erl_crash.dump into its working directory."""
    for server in (servers.broker, servers.store):
        process = psutil.Process(server.pid)
        for each in (process, *process.children(recursive=True)):
            assert not Path(each.cwd()).is_relative_to(ROOT)
