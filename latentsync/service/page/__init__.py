"""The web page: a clip or a photo and a voice in, the clip speaking that voice out.

run.py       one run at a time, step by step, for whoever watches it, also after a reload
measure.py   how mouth and voice go together in an output, as curves and as a picture
form.py      what can be chosen on the page -> Options
choices.py   the components by which it is chosen
look.py      colours, CSS and script
blocks.py    the page itself
"""
