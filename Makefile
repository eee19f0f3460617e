# Two commands on a fresh machine with python3-venv and make:
#   make demo    install the runtime (no torch) and transcribe the shipped samples
#   make test    install what the tests need, run ruff and pytest
# And, where the training data lie: make models SPEECH=folder    train, export, measure and compare the shipped models

PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
PIP_ARGS ?=

.PHONY: demo test models clean

demo: $(VENV)/installed
	@echo
	@echo "The samples in samples/, made with espeak-ng and flite:"
	@$(VENV)/bin/edge-asr transcribe --with-names samples/*.flac samples/*.wav samples/*.ogg samples/*.opus samples/*.mp3
	@echo
	@echo "Now your own recordings (wav, flac, ogg, opus, mp3; any rate, any channels):"
	@echo "    $(VENV)/bin/edge-asr transcribe YOUR_FILE.wav"
	@echo "    $(VENV)/bin/edge-asr transcribe --output-format srt YOUR_FILE.mp3 > YOUR_FILE.srt"

test: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/python -m pytest

# Hours to days of training; it resumes where it was stopped. models/recipes.toml holds the recipes.
models: $(TEST_VENV)/installed
	@test -n "$(SPEECH)" || { echo "needs the folder of the manifests: make models SPEECH=/data/speech"; exit 1; }
	$(TEST_VENV)/bin/python models/make.py all $(SPEECH)

# A stamp newer than pyproject.toml means that its dependencies are in.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "needs the venv module: apt-get install python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet $(PIP_ARGS) -e .
	@touch $@

$(TEST_VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(TEST_VENV) || { echo "needs the venv module: apt-get install python3-venv"; exit 1; }
	$(TEST_VENV)/bin/pip install --quiet $(PIP_ARGS) -e '.[test]'
	@$(TEST_VENV)/bin/pip install --quiet $(PIP_ARGS) --only-binary ray -e '.[ray]' || echo "no wheel of ray for this Python: its tests are skipped"
	@touch $@

clean:
	rm -rf $(VENV) $(TEST_VENV) build *.egg-info
