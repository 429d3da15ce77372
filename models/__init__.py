"""Networks: training, export, and the artefacts that serving loads. Nothing is imported from here."""
