"""The whole jobs: what a command, a button, a README example, a notebook cell and an end-to-end test call.

`data.py`: phantoms, inspection, records. `learning.py`: fit, predict, evaluate. `demo.py`: all of them in a row.
`catalogue.py`: what models and losses there are. Every workflow takes paths and plain settings, writes whole files,
goes on after a failed subject and reports it, and takes `progress(done, total, note)`.

Nothing is imported here, so that listing commands does not load TensorFlow; import the workflow you need from its file.
"""
