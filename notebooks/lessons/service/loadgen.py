"""MLPerf's LoadGen offers the load of ``load`` and takes the same command line, but for users (0) and arrivals.

``python -m notebooks.lessons.service.loadgen PORT FOLDER RATE SECONDS SEED 0``. Taught in notebooks/14_serve_it.ipynb.
"""

import asyncio
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import mlperf_loadgen as lg

from notebooks.lessons.service.load import Load


def offer(load: Load) -> dict[str, object]:
    """Let LoadGen offer a load; arrivals, clock and percentiles are its own, the pictures are sent by ``load.ask``.

    Returns:
        p50, p95 and p99 in ms (infinite if a picture was not answered), and the arrivals: (s, number of the picture).
    """
    loop, lost, arrivals = asyncio.new_event_loop(), [], []
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def send(query):
        if await load.ask(load.photos[query.index]) != 200:
            lost.append(query.id)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    def issue(queries):
        for query in queries:
            arrivals.append((time.perf_counter(), query.index))
            asyncio.run_coroutine_threadsafe(send(query), loop)

    wanted = lg.TestSettings()
    wanted.scenario, wanted.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    wanted.server_target_qps, wanted.server_target_latency_ns = load.rate, 10**10
    wanted.min_duration_ms, wanted.min_query_count = int(1000 * load.seconds), int(load.rate * load.seconds)
    wanted.schedule_rng_seed = wanted.sample_index_rng_seed = int(load.seed)
    with tempfile.TemporaryDirectory() as folder:
        sut = lg.ConstructSUT(issue, lambda: None)
        samples = lg.ConstructQSL(len(load.photos), len(load.photos), lambda indices: None, lambda indices: None)
        where = lg.LogSettings()
        where.log_output.outdir = folder
        lg.StartTestWithLogSettings(sut, samples, wanted, where)
        summary = Path(folder, "mlperf_log_summary.txt").read_text()
    found = re.findall(r"(50|95|99)\.00 percentile latency \(ns\) +: (\d+)", summary)
    percentiles = {f"p{percent}": float("inf") if lost else int(ns) / 1e6 for percent, ns in found}
    return percentiles | {"arrivals": [(moment - arrivals[0][0], photo) for moment, photo in arrivals]}


if __name__ == "__main__":
    offered = Load(*sys.argv[1:7])
    print(json.dumps(offer(offered) | {"cpu_share": time.process_time() / offered.seconds}))
