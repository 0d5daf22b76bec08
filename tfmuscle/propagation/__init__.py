"""From a few drawn slices to all slices of a scan: what carries masks, what fills in, what they disagree about.

No network is needed here and none is known: TensorFlow stays in `inference.propagation`, which gives a `Carrier` too.
"""
