"""The web page: a clip or a photo and a voice in, the clip speaking that voice out.

run.py       one run at a time, step by step, for whoever watches it
measure.py   how mouth and voice go together in an output, as curves and as a picture
form.py      what can be chosen on the page -> Options
blocks.py    the page itself; the only importer of Gradio
"""
