"""Figures that say how good an output is, and `latentsync evaluate`, which takes them of many.

The arithmetic is functions over pictures and features, one noun a file. metric.py says what a
metric of the command is; measures.py and speaking.py hold them, clips.py what they see, runner.py
lets clips pass them, tables.py and page.py write down what came out.

Drawn faces have a truth besides: ruler.py reads the mouth off a clip, lips.py holds it against what
the voice asks for.
"""
