"""Power agent: reads the power meters of nodes and exposes watts and joules to Prometheus.

One process on each host reads the meters that `rows.py` finds for it: ATORCH meters over Bluetooth (`atorch.py`, `meter.py`) and
the INA3221 of a Jetson (`ina3221.py`). `measurement.py` keeps what was read, `metrics.py` exposes it, `agent.py` runs it all.
"""
