"""Metrics of an output's quality, and `latentsync evaluate`, which measures many outputs.

metric.py defines what a metric is; image_metrics.py, face_metrics.py and sync_metrics.py are the
metrics, over image_quality.py, features.py, frechet.py, sync.py and published_sync.py. clips.py
pairs and opens files, runner.py runs all metrics over them, tables.py and report.py write results.

Drawn faces have a ground truth: mouth_net.py measures the mouth, lip_correlation.py and
lip_closure.py compare it with the voice.
"""
