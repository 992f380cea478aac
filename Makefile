# `make demo` and `make test` are all a newcomer needs; each installs what is missing into .venv.
PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import ensurepip, venv' 2> /dev/null && echo $(name))))
TORCH  ?= torch==2.13.0
BIN    := .venv/bin

.PHONY: demo test test-all docs footage bench train-demo render-heads lint clean

demo: .venv/installed
	mkdir -p out
	$(BIN)/latentsync generate examples/face.mp4 examples/speech.wav -o out/demo.mp4 --model demo
	$(BIN)/python scripts/demo_report.py

test: .venv/installed lint
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

# What `test` leaves out for its weight: full-size nets, services, a browser, long runs. Tests of the
# page are skipped without Chromium, those of compiled nets without a GPU or g++; LATENTSYNC_NO_SKIPS=1
# makes a skipped test a failed one, except for want of a GPU.
test-all: .venv/heavy .venv/docs .venv-restore/installed
	$(BIN)/pytest -m slow -n 2 --dist loadfile --timeout 1800
	.venv-restore/bin/python -m pytest --confcutdir tests/restoration tests/restoration --timeout 1800

# The pages of docs/ as a site in out/docs, which opens from the disk. Fails on any broken link.
docs: .venv/docs
	$(BIN)/zensical build --strict

# Whole runs on clips as people have them, made here: expected, got, PASS or FAIL, a line each. Then
# films of several people: whose face is redrawn in each frame.
footage: .venv/installed
	$(BIN)/python -m tests.footage.timing
	$(BIN)/python -m tests.footage
	$(BIN)/pytest -m slow tests/test_films.py

# What benchmarks/README.md says of speed and memory, on a machine that does nothing else meanwhile:
# half an hour. Needs neither a GPU nor weights; benchmarks/gpu.py is for who has one.
bench: .venv/installed
	$(BIN)/python benchmarks/media.py --plot benchmarks/media.png
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/stages.py -o benchmarks/stages.png
	$(BIN)/python benchmarks/memory.py --plot benchmarks/memory.png
	$(BIN)/python benchmarks/encoder_memory.py
	$(BIN)/python benchmarks/effort.py --plot benchmarks/effort.png
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/restoration.py --people 2 --plot benchmarks/restoration.png
	$(BIN)/python benchmarks/unet_forward.py
	$(BIN)/python benchmarks/cold_start.py

# What is in weights/demo, from nothing; goes on where it was stopped (what it draws is in out/).
train-demo: .venv/installed
	$(BIN)/python scripts/train_measures.py
	$(BIN)/python scripts/train_likeness.py
	$(BIN)/pip install -q -e '.[train,ear]'
	$(BIN)/python scripts/train_ear.py
	$(BIN)/python scripts/train_demo.py

# Photographic heads for training, into out/heads: 20 to 30 s of one core for each of 1,200 people.
# Goes on where it was stopped. Needs Python 3.11 and, on a machine without a desktop, Debian's libgl1
# libegl1 libxrender1 libxi6 libxkbcommon0 libsm6 libxxf86vm1 libxfixes3; neither display nor GPU.
render-heads: .venv/installed .venv-render/installed
	nice $(BIN)/python -m scripts.render_heads

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch in a call of its own, so that nothing else picks a build of it. Two without what they ask
# for (their needs are in pyproject): insightface, because opencv-python would replace the headless
# cv2, and lpips, whose weights are all that is wanted, because torchvision may not fit this torch.
.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv is on the PATH. Install one"\
		"(Debian, Ubuntu: apt install python3-venv; Fedora: dnf install python3.13; macOS: brew install"\
		"python@3.13; others: https://www.python.org/downloads/), or name it: make PYTHON=/path/to/python"; exit 1; } >&2
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps insightface==2.1 lpips==0.1.4
	touch $@

# What only `test-all` wants: the page and its browser's driver, Ray, servers to test against.
.venv/heavy: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[heavy]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps openapi-python-client==0.29.1
	touch $@

# What builds the site of docs/.
.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

# Restoration's own environment: all of .venv's, and torchvision with what needs it, for a build of
# it that doesn't fit torch breaks the import of much else.
.venv-restore/installed: .venv/installed
	$(BIN)/python -m venv .venv-restore
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-restore/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main.pth"
	.venv-restore/bin/pip install --quiet --disable-pip-version-check --no-deps \
		torchvision==0.28.0 spandrel==0.4.2 spandrel_extra_arches==0.2.0 einops==0.8.2
	touch $@

# Blender's module, which is GPL, in an environment of its own; pip reads groups since 25.1.
.venv-render/installed: pyproject.toml
	python3.11 -m venv .venv-render
	.venv-render/bin/pip install --quiet --disable-pip-version-check 'pip>=25.1'
	.venv-render/bin/pip install --quiet --disable-pip-version-check --group render
	touch $@

clean:
	rm -rf .venv .venv-render .venv-restore out .cache .mypy_cache .pytest_cache .ruff_cache
