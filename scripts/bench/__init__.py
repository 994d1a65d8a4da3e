"""Benchmarks of a node beside its peers, and of a cluster. Run as `python -m scripts.bench`.

`systems` puts three logs behind one interface, `workloads` loads any of them, `single` and
`cluster` say what is measured and beside which target, `report` shows it.
"""
