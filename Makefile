# Everything a newcomer needs: `make pocket` runs the main job, `make test` passes the tests.
PYTHON ?= python3.11
VENV ?= .venv
CLUSTER ?= .venv-cluster
LIGHTLY ?= .venv-lightly
PY := $(VENV)/bin/python
# Tests in two processes, a file's tests in one of them; each test and what it starts has one thread.
TEST_JOBS ?= 2
PARALLEL = -n $(TEST_JOBS) --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: pocket smoke pocket-full rehearse rehearse-ddp test check unit e2e browser cluster slurm-test \
  planted faults fuzz mutation scale scale-data lightly gpu-check install clean

pocket: install
	$(PY) tools/run_suite.py configs/suites/pocket.py

smoke: install
	$(PY) tools/run_suite.py configs/suites/smoke.py

pocket-full: install
	$(PY) tools/run_suite.py configs/suites/pocket_full.py

# Every stage of the full-scale suites (267 each) on tiny data in the real formats.
rehearse: install
	$(PY) tools/run_suite.py paper_r18 --rehearse
	$(PY) tools/run_suite.py paper_mnv2 --rehearse

# The same with two gloo processes for each of the 230 trainings of a suite: 2 to 4 s of CPU each.
rehearse-ddp: install
	for suite in paper_r18 paper_mnv2; do \
	  $(PY) -m torch.distributed.run --standalone --nproc-per-node 2 tools/run_suite.py $$suite \
	    --rehearse --work-dir work_dirs/rehearsal_ddp || exit; done

test: install check
	$(PY) -m pytest $(PARALLEL)

check: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m basedpyright --pythonpath $(PY)

unit: install
	$(PY) -m pytest $(PARALLEL) -m "not e2e"

e2e: install
	$(PY) -m pytest $(PARALLEL) -m e2e

# The report's page in a headless Chromium, with axe-core; needs Debian's chromium and npm.
# SCREENSHOTS=folder keeps what it saw.
AXE := 4.14.1
browser: install
	$(PY) -m pip install --quiet --no-deps -r requirements-browser.lock
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	  (cd "$$tmp" && npm pack --silent axe-core@$(AXE) > /dev/null && tar xzf axe-core-$(AXE).tgz) && \
	  KDEP_AXE="$$tmp/package/axe.min.js" KDEP_SCREENSHOTS="$(abspath $(SCREENSHOTS))" \
	  $(PY) -m pytest -rs tests/results/test_results_browser.py

# Snakemake in a virtual environment of its own: for `run_suite.py --executor slurm`.
cluster: $(CLUSTER)/.installed

# On a real Slurm that the tests start here, as root, the smoke suite included; half an hour.
slurm-test: install cluster
	@for p in slurmctld slurmd srun munged; do PATH=$$PATH:/usr/sbin command -v $$p >/dev/null || \
	  { echo "slurm-test needs root and: apt-get install slurmctld slurmd slurm-client munge"; exit 1; }; done
	KDEP_SLURM_TEST=1 $(PY) -m pytest -v tests/cluster tests/suite/test_suite_stage.py

# Kills, full disks, damage, memory, clocks: injected into the smoke suite; writes the table. As root
# and with a C compiler for all of them, and Slurm as for slurm-test; 15 to 20 minutes.
# FAULTS='--home DIR' keeps its work there: cut, it goes on with the fault it was at.
faults: install
	$(PY) tests/suite/suite_faults.py --out results/faults.md $(FAULTS)

# Plants one-line faults in the code that decides numbers and runs the tests that call it; writes
# results/mutation.md. An hour of a core from nothing; interrupted, it continues where it was.
# MUTATION='features --jobs 2', '--again', '--list': see tests/mutation/__main__.py.
mutation: install
	$(PY) -m tests.mutation $(MUTATION)

# Changed files to every reader; only sentences may come out; at most ten minutes.
# FUZZ='--out FILE' writes the table.
fuzz: install
	$(PY) -m tests.fuzz --inputs 3000 --seconds 15 $(FUZZ)

# Ten one-line faults in the protocol, planted one at a time in a copy; fails if the tests miss one.
planted: install
	$(PY) -m tests.planted.run

# On a machine with a GPU: what a CPU cannot prove, in at most eight minutes (results/gpu_check).
# The same on a machine without network: python tools/gpu_check.py --pack DIR, carry DIR there.
gpu-check: install
	$(PY) tools/gpu_check.py $(GPU_CHECK)

# What planning, looking, scheduling and starting stages cost; two minutes of an idle machine.
scale: install
	$(PY) -m kdep_bench.suite.bench

# What hashing 100,000 small files costs, and looking at them again; a minute.
scale-data: install
	$(PY) -m kdep_bench.suite.bench_data

# lightly-train, to measure against (`tools/benchmark.py --against lightly-train`), in a virtual
# environment of its own that reads the project's: one torch, one timm for both.
lightly: $(LIGHTLY)/.installed

install: $(VENV)/.installed

# --no-deps: the lock is complete, and resolving would bring the GUI build of OpenCV (see the lock).
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-deps -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
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

clean:
	rm -rf $(VENV) $(CLUSTER) $(LIGHTLY) work_dirs
