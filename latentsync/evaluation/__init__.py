"""Figures that say how good an output is.

sync.py asks the published evaluation SyncNet, for anybody's face. For drawn faces there is a truth:
ruler.py reads the mouth off a clip, lips.py holds it against what the voice asks for. pictures.py
compares pictures, and makes sheets of them for the eye.
"""
