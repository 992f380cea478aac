"""A zoo of clips and voices as people have them, each made here, run whole, and measured.

    table.jsonl     what each is and what must come of it, a line each
    faces.py        drawn people: the frames that clips are made of
    films.py        films of several people, and where each face is: for test_films.py
    pictures.py     makers of clips: one function a kind, named in the table
    stills.py       makers of photos
    gadgets.py      makers of clips as whole devices, programs and sites write them
    voices.py       makers of voices
    places.py       makers of what the output is called, and of a folder of weights
    zoo.py          makes each once a run, by its name in the table
    trial.py        one line of the table: the command run, its output measured by FFmpeg's binary
    timing.py       time stamps of containers and joins: frame numbers and sound against FFmpeg's
    __main__.py     `make footage`: all of them, one line each

A line of the table: `name`; `video`, `voice` and `output`, each `maker` or `maker:argument`;
`options` of `latentsync generate`, in which {maker} stands for what it makes; the `exit` code;
`message`, a part of what is printed; and of an output its `frames`, `seconds`, `size`, when its
`sound` ends (seconds), and `stream`, a part of what FFmpeg says of its pictures; its first frame
`looks` like which picture (a maker again; "": the clip as FFmpeg shows it), but for so many grey
levels (`unlike`). `why` stands where an expectation is a choice, `fast` marks what `make test`
runs.
"""
