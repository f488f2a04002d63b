# Everything runs in .venv, which is made from pyproject.toml with the versions of constraints.txt.
# Needs make, Python 3.11 or later and a Python package index; pip's own settings are respected.

PYTHON ?= python3
VENV ?= .venv
BIN = $(CURDIR)/$(VENV)/bin
READY = $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check style bench bench-cpu bench-sst2 results clean

help:
	@echo "make demo    export the real MiniLM, check it, embed a few sentences, measure it"
	@echo "make test    run the tests"
	@echo "make check   formatting, lint, types, import contracts"
	@echo "make style   format, and fix what the linter can fix"
	@echo "make bench   measure MiniLM and BERT-base (random weights)"
	@echo "make bench-cpu DATA=DIR   both beside PyTorch and other libraries, with real texts of DIR"
	@echo "make bench-sst2 DATA=DIR MODEL=DIR   a classifier in every precision: speed and accuracy"
	@echo "make results docs/results.md, from what was kept in benchmarks/results"
	@echo "make clean   remove what the above made, .venv included"
	@echo "Set PYTHON=python3.12 to choose the interpreter .venv is made with."

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("tfx needs Python 3.11 or later, $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	rm -rf .demo
	mkdir .demo
	cd .demo && $(BIN)/tfx export minilm
	cd .demo && $(BIN)/tfx check
	cd .demo && $(BIN)/tfx predict --text "A man is eating food." --text "Someone has a meal." \
		--text "The stock market fell." | cut -c 1-100
	cd .demo && $(BIN)/tfx bench

# A file's tests stay in one process, where they share what they exported.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

style: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(READY)
	rm -rf .bench
	mkdir .bench
	cd .bench && $(BIN)/tfx export minilm && $(BIN)/tfx bench minilm
	cd .bench && $(BIN)/tfx export bert-base --random-weights && $(BIN)/tfx bench bert-base

# What the standing comparisons on a CPU take, made again when the code that makes it changed. Peers
# have environments of their own: one that cannot be installed is not tried again, and is a row that
# says why.
CPU = .bench-cpu
PEERS = .peers
SST2 = .bench-sst2
RESULTS ?= benchmarks/results
SAVE = $(if $(RESULTS),--save $(abspath $(RESULTS)))
NEEDS_DATA = $(or $(DATA),$(error name the folder of evaluation data: DATA=DIR))
NEEDS_MODEL = $(or $(MODEL),$(error name the folder of the classifier: MODEL=DIR))
EXPORTS = $(wildcard src/tfx/*.py export/*.py export/*/*.py)
QUANTIZES = $(wildcard quantize/*.py)

$(CPU)/minilm: $(EXPORTS) | $(READY)
	rm -rf $@ && mkdir -p $(CPU)
	cd $(CPU) && $(BIN)/tfx export minilm

# Of the kind of texts that are measured, and none of these: the file both calibrates and judges.
$(CPU)/texts.txt: benchmarks/peers/sentences.py | $(READY)
	mkdir -p $(CPU)
	$(BIN)/python -m tfx.bench.corpus --data $(abspath $(NEEDS_DATA)) -o $(abspath $@)

$(CPU)/minilm-int8: $(CPU)/minilm $(CPU)/texts.txt $(QUANTIZES)
	rm -rf $@
	cd $(CPU) && $(BIN)/tfx quantize minilm --int8 --calibrate texts.txt --eval texts.txt \
		--metric least-cosine --max-drop 0.004

$(CPU)/bert-base: $(EXPORTS) | $(READY)
	rm -rf $@ && mkdir -p $(CPU)
	cd $(CPU) && $(BIN)/tfx export bert-base --random-weights

$(CPU)/bert-base-int8: $(CPU)/bert-base $(QUANTIZES)
	rm -rf $@
	cd $(CPU) && $(BIN)/tfx quantize bert-base --int8 --calibrate random

# CPU_ARGS, TEXT_ARGS and SST2_ARGS are passed on; RESULTS is where numbers are kept, empty to keep
# none.
bench-cpu: $(CPU)/minilm-int8 $(CPU)/bert-base-int8
	$(BIN)/python -m tfx.bench.environments $(PEERS) --constraints constraints.txt
	rm -f $(CPU)/peaks.json
	cd $(CPU) && $(BIN)/python -m tfx.bench.cpu bert-base bert-base-int8 --peaks peaks.json \
		$(SAVE) $(CPU_ARGS)
	cd $(CPU) && $(BIN)/python -m tfx.bench.text minilm minilm-int8 --peaks peaks.json \
		--data $(abspath $(NEEDS_DATA)) --peers $(abspath $(PEERS)) \
		$(SAVE) $(TEXT_ARGS)

bench-sst2: $(READY)
	rm -rf $(SST2) && mkdir $(SST2)
	cd $(SST2) && $(BIN)/tfx export $(abspath $(NEEDS_MODEL)) -o sst2
	cd $(SST2) && $(BIN)/tfx quantize sst2 --fp16 && $(BIN)/tfx quantize sst2 --bf16
	cd $(SST2) && $(BIN)/tfx quantize sst2 --int8 \
		--calibrate $(abspath $(NEEDS_DATA))/sst2/train.tsv
	cd $(SST2) && $(BIN)/tfx bench sst2 sst2-fp16 sst2-bf16 sst2-int8 \
		--backend torch --backend torch-compiled --backend onnxruntime --backend openvino \
		--eval $(abspath $(NEEDS_DATA))/sst2/dev.tsv --output sst2.json --html sst2.html \
		$(SAVE) $(SST2_ARGS)

results: $(READY)
	$(BIN)/python -m tfx.bench.results $(RESULTS)

clean:
	rm -rf $(VENV) .demo .bench $(CPU) $(SST2) $(PEERS) build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
