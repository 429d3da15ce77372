"""From a network to an artefact that serving loads: see docs/export.md.

``network.export`` takes a torch module, ``adopt.adopt`` a ready ONNX file; the latter needs no torch, so nothing is
imported here.
"""
