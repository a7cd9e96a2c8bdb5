# `make pocket` runs the main suite, `make test` the tests.
PYTHON ?= python3.11
VENV ?= .venv
CLUSTER ?= .venv-cluster
LIGHTLY ?= .venv-lightly
TRACKERS ?= .venv-trackers
PY := $(VENV)/bin/python
# Tests run in two processes, split by file; each test and its subprocesses use one thread.
TEST_JOBS ?= 2
PARALLEL = -n $(TEST_JOBS) --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: pocket smoke pocket-full rehearse rehearse-ddp test check unit e2e browser cluster slurm-test docs \
  planted faults fuzz mutation scale scale-data lightly gpu-check notebooks trackers first-use \
  install clean

pocket: install
	$(PY) tools/run_suite.py configs/suites/pocket.py

smoke: install
	$(PY) tools/run_suite.py configs/suites/smoke.py

pocket-full: install
	$(PY) tools/run_suite.py configs/suites/pocket_full.py

# Runs every stage of the full-scale suites (267 each) on tiny data in the real formats.
rehearse: install
	$(PY) tools/run_suite.py paper_r18 --rehearse
	$(PY) tools/run_suite.py paper_mnv2 --rehearse
	$(PY) tools/run_suite.py paper_maps_r18 --rehearse
	$(PY) tools/run_suite.py paper_foggy --rehearse

# The same with two gloo processes for each of the 230 trainings per suite; a training takes 2 to 4 s
# of CPU time.
rehearse-ddp: install
	for suite in paper_r18 paper_mnv2; do \
	  $(PY) -m torch.distributed.run --standalone --nproc-per-node 2 tools/run_suite.py $$suite \
	    --rehearse --work-dir work_dirs/rehearsal_ddp || exit; done

test: install check docs notebooks
	$(PY) -m pytest $(PARALLEL)

check: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m basedpyright --pythonpath $(PY)

# Builds the documentation site into site/; a broken link is an error.
docs: install
	$(PY) -m pip install --quiet --no-deps -r requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

# Runs the notebooks of docs/notebooks from scratch, on the data of `smoke`; part of `make test`.
notebooks: install
	$(PY) -m pip install --quiet --no-deps -r requirements-notebooks.lock
	$(PY) docs/notebooks/run.py

# What a new user does with the wheel alone, in a new virtual environment and an empty folder, timed
# against limits: smoke, a leaderboard of own data, an ONNX file that runs. FIRST_USE='--python
# python3.12', '--pocket'.
first-use: install
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	  $(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$$tmp" . && \
	  $(PY) tests/e2e/first_use.py "$$tmp"/*.whl $(FIRST_USE)

# Tests the trackers MLflow and Weights & Biases, without a network; half a minute.
trackers: $(TRACKERS)/.installed
	$(TRACKERS)/bin/python -m pytest -rs tests/pretrain/test_pretrain_trackers.py

unit: install
	$(PY) -m pytest $(PARALLEL) -m "not e2e"

e2e: install
	$(PY) -m pytest $(PARALLEL) -m e2e

# Tests the HTML page in a headless Chromium, with axe-core; needs Debian's chromium and npm.
# SCREENSHOTS=folder saves screenshots.
AXE := 4.14.1
browser: install
	$(PY) -m pip install --quiet --no-deps -r requirements-browser.lock
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	  (cd "$$tmp" && npm pack --silent axe-core@$(AXE) > /dev/null && tar xzf axe-core-$(AXE).tgz) && \
	  KDEP_AXE="$$tmp/package/axe.min.js" KDEP_SCREENSHOTS="$(abspath $(SCREENSHOTS))" \
	  $(PY) -m pytest -rs tests/results/test_results_browser.py

# Installs Snakemake in a separate virtual environment, for `run_suite.py --executor slurm`.
cluster: $(CLUSTER)/.installed

# Tests with Slurm, including the smoke suite; they start Slurm on this machine, as root. Half an hour.
slurm-test: install cluster
	@for p in slurmctld slurmd srun munged; do PATH=$$PATH:/usr/sbin command -v $$p >/dev/null || \
	  { echo "slurm-test needs root and: apt-get install slurmctld slurmd slurm-client munge"; exit 1; }; done
	KDEP_SLURM_TEST=1 $(PY) -m pytest -v tests/cluster tests/engine/test_engine_stage.py

# Injects faults into the smoke suite (kills, full disks, damaged files, memory, clocks) and writes
# results/faults.md. Needs root, a C compiler and Slurm, as slurm-test does; 15 to 20 minutes.
# FAULTS='--home DIR' keeps the state in DIR; an interrupted run resumes at the same fault.
faults: install
	$(PY) tests/engine/engine_faults.py --out results/faults.md $(FAULTS)

# Plants one-line faults in the code that computes results and runs the tests that call it; writes
# results/mutation.md. A complete run takes an hour on one core; an interrupted run resumes.
# Options: MUTATION='features --jobs 2', '--again', '--list'; see tests/mutation/__main__.py.
mutation: install
	$(PY) -m tests.mutation $(MUTATION)

# Fuzzes every file reader: no other exception than KdepError may be raised; at most ten minutes.
# FUZZ='--out FILE' writes the table to FILE.
fuzz: install
	$(PY) -m tests.fuzz --inputs 3000 --seconds 15 $(FUZZ)

# Plants ten one-line faults in a copy of the code, one at a time; fails if the tests miss one.
planted: install
	$(PY) -m tests.planted.run

# GPU checks, in at most eight minutes (writes results/gpu_check).
# For a machine without network: python tools/gpu_check.py --pack DIR, then copy DIR there.
gpu-check: install
	$(PY) tools/gpu_check.py $(GPU_CHECK)

# Measures the time of planning, status checks, scheduling and starting stages; two minutes.
scale: install
	$(PY) -m kdep_bench.benchmark.engine_cost

# Measures the time of hashing 100,000 small files and of checking them again; one minute.
scale-data: install
	$(PY) -m kdep_bench.benchmark.data_hashing

# Installs lightly-train for `tools/benchmark.py --against lightly-train` in a separate virtual
# environment that also uses the project's packages: one torch, one timm for both.
lightly: $(LIGHTLY)/.installed

install: $(VENV)/.installed

# --no-deps: the lock file is complete; pip's resolver would install OpenCV with GUI (see the file).
# yapf, which mmengine imports, writes its cache at the first import. A process that reads the cache
# at that moment gets an EOFError, so the first import is made here, by one process.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	$(PY) -c "import yapf"
	touch $@

$(CLUSTER)/.installed: requirements-cluster.lock
	test -x $(CLUSTER)/bin/python || $(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet --no-deps -r requirements-cluster.lock
	touch $@

$(LIGHTLY)/.installed: requirements-lightly.lock $(VENV)/.installed
	test -x $(LIGHTLY)/bin/python || $(PYTHON) -m venv $(LIGHTLY)
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  $$($(LIGHTLY)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/project.pth
	$(LIGHTLY)/bin/python -m pip install --quiet --no-deps -r requirements-lightly.lock
	touch $@

$(TRACKERS)/.installed: requirements-trackers.lock $(VENV)/.installed
	test -x $(TRACKERS)/bin/python || $(PYTHON) -m venv $(TRACKERS)
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  $$($(TRACKERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/project.pth
	$(TRACKERS)/bin/python -m pip install --quiet --no-deps -r requirements-trackers.lock
	touch $@

clean:
	rm -rf $(VENV) $(CLUSTER) $(LIGHTLY) $(TRACKERS) work_dirs
