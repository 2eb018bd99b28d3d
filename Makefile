# The commands of the project. A bare machine needs only make and Python 3.11 or newer.
# PYTHON=python3.13 make setup   takes another Python; everything is installed in .venv and nowhere else.

PYTHON ?= python3
BIN := .venv/bin
# Written last, so that a set-up that broke off is not taken as finished.
READY := .venv/ready

# A virtual environment cannot be moved: one that was made in another folder is made anew.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: help setup demo test lab docs export notebooks levels weights bench recipe trust checks own stress everywhere clean

help: ## list these commands (what plain `make` does)
	@sed -n 's/^\([a-z]*\):.*## /  make \1 ~/p' Makefile | column -t -s '~' 2>/dev/null || grep '## ' Makefile

setup: $(READY) ## build .venv, with all that the course, the library and the tests need (a few minutes, once)

$(READY): settings.ini setup.py constraints.txt scripts/repair_torchvision.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; with one of another name: make setup PYTHON=python3.13" >&2; exit 1; }
	@echo "Setting up .venv: about 2 GB to fetch and install, which takes 2 to 5 minutes on a good line."
	@test -e $(READY) || $(PYTHON) -m venv --clear .venv
	@rm -f $(READY)
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
		echo "OpenCV does not load, mostly for lack of a screen's libraries: its package without windows takes over."; \
		$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps \
			opencv-python-headless && $(BIN)/python -c 'import cv2'; }
	@$(BIN)/python scripts/repair_torchvision.py
	@echo "$(CURDIR)" > $(READY)

demo: setup ## train a small network on drawn pictures, and show its mistakes with Grad-CAM
	@$(BIN)/cifar-cam train --preset demo

# Processes that nbdev_test starts work in other folders, so coverage is told its files by their whole names.
test: export COVERAGE_RCFILE = $(CURDIR)/.coveragerc
test: export COVERAGE_FILE = $(CURDIR)/.coverage
test: setup ## run every notebook and every test
	@rm -f .coverage .coverage.*
	@status=0; \
	$(BIN)/coverage run -m scripts.publish.test_notebooks || status=1; \
	$(BIN)/coverage combine --quiet; \
	OMP_NUM_THREADS=1 NO_ALBUMENTATIONS_UPDATE=1 TQDM_DISABLE=1 MPLBACKEND=agg \
		$(BIN)/python -m pytest tests -rs --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov --cov-append --cov-fail-under=95 || status=1; \
	exit $$status

# As the user root, in a container: make lab OPTIONS='--allow-root --no-browser'
lab: setup ## open JupyterLab on the chapters
	@$(BIN)/jupyter lab --notebook-dir=nbs $(OPTIONS)

docs: setup ## build the site from the notebooks, into _docs/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file scripts/publish/mkdocs.yml
	@echo "The site: _docs/index.html"

export: setup ## write the library, README.md and the page on the levels from the notebooks, and tidy all
	@$(BIN)/ruff format --quiet nbs scripts tests setup.py
	@$(BIN)/python -m scripts.publish.build_readme
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_export
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_clean
	@$(BIN)/python -m scripts.publish.build_levels

notebooks: setup ## run all notebooks but the three levels, and save their outputs
	@$(BIN)/python -m scripts.publish.run_notebooks

levels: setup ## run the three levels in full, save their outputs, and train two more seeds (three hours)
	@$(BIN)/python -m scripts.measure.levels --out results/levels.json

weights: setup ## train the two small networks that come in the package, on drawn pictures and on CIFAR-10 (35 minutes)
	@$(BIN)/cifar-cam train --preset demo --out runs/ship-drawn
	@$(BIN)/cifar-cam train --preset laptop --out runs/ship-cifar10
	@$(BIN)/python -m scripts.publish.ship_weights runs/ship-drawn runs/ship-cifar10

bench: setup ## measure batches, training and Grad-CAM beside other libraries (40 minutes, on a quiet machine)
	@$(BIN)/python -m scripts.measure.bench_training --out results/bench
	@$(BIN)/python -m scripts.measure.bench_gradcam --out results/bench

recipe: setup ## measure what each part of the recipe is worth, for chapter 9 (an hour and a half)
	@$(BIN)/python -m scripts.measure.recipe --out results/recipe.json

trust: setup ## measure how far Grad-CAM's maps can be believed, for chapter 7 (an hour)
	@$(BIN)/python -m scripts.measure.measure_trust --out results/trust.json

checks: setup ## measure how good the test of a single map is, for chapter 7 (two hours)
	@$(BIN)/python -m scripts.measure.check_maps --out results/checks.json

own: setup ## measure fine-tuning with few pictures, and the maps of a small ViT, for chapter 10 (an hour or two)
	@$(BIN)/python -m scripts.measure.own --out results/own.json

stress: setup ## try to break it: kills, bad downloads, damaged and dear files (at most 45 minutes)
	@$(BIN)/python -m scripts.measure.stress --out results/stress.json

everywhere: setup ## the tests as on Windows and Macs, a fresh environment, each notebook from three places (two hours)
	@$(BIN)/python -m scripts.everywhere

clean: ## delete .venv and what the tests leave; runs/ and data/ stay
	@rm -rf .venv build dist ./*.egg-info .coverage .coverage.* .pytest_cache _proc _docs
