"""The app in another program, as in a test client: its lifespan runs in a thread that is not the main one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, free_port
from tests.harness.servers import Servers

pytestmark = pytest.mark.parametrize("servers", ["valkey"], indirect=True)

ENDS_WITHIN_S = 60
LIFESPAN_IN_A_THREAD = """
import asyncio, threading
from app import app

async def run():
    async with app.router.lifespan_context(app):
        print("started")
    print("stopped")

thread = threading.Thread(target=asyncio.run, args=[run()])
thread.start()
thread.join()
"""

SERVER_IN_A_THREAD = """
import sys, threading, time
import requests, uvicorn
from test_client import CUSTOMER

server = uvicorn.Server(uvicorn.Config("app:app", port=int(sys.argv[1]), access_log=False))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started and thread.is_alive():
    time.sleep(0.01)
url = f"http://127.0.0.1:{sys.argv[1]}"
print(requests.get(f"{url}/livez").status_code, requests.post(f"{url}/churn/predict", json=CUSTOMER).status_code)
server.should_exit = True
thread.join()
"""


@pytest.mark.parametrize(
    ("program", "output"),
    [(LIFESPAN_IN_A_THREAD, "started\nstopped\n"), (SERVER_IN_A_THREAD, "200 202\n")],
    ids=["lifespan", "uvicorn"],
)
def test_the_app_starts_and_stops_in_a_thread(servers: Servers, tmp_path: Path, program: str, output: str) -> None:
    env = {**os.environ, **servers.env, "PYTHONPATH": str(ROOT)}
    # A program that hangs prints the stack of each thread, and ends.
    watched = f"import faulthandler\nfaulthandler.dump_traceback_later({ENDS_WITHIN_S}, exit=True)\n{program}"
    command = [sys.executable, "-c", watched, str(free_port())]
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, output), run.stderr
