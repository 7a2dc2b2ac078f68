# The usual habits; `just` lists them.

default:
    @just --list

# Install with the test tools, in the active environment
install:
    pip install -e ".[dev]"

# The tests, on all cores; without those marked `slow`
test *args:
    pytest {{args}}

# All tests
test-all *args:
    pytest -m "" {{args}}

# Style, types, architecture
check:
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    mkdocs build --strict

# Put every file into shape
format:
    ruff check --fix .
    ruff format .

# The command reference, and the site, in site/
docs:
    python tools/make_docs.py
    mkdocs build --strict

# docs/results.md and the figure (about 15 minutes on 2 cores)
results:
    python tools/make_results.py

# The benchmarks
bench:
    python benchmarks/fast_path.py
    python benchmarks/large_table.py --set adapter.expansion=1 --set train.vocabulary=seen --set train.until=steps --set train.steps=6

# Everything that a change has to pass, in a fresh environment
ci:
    bash .ci/run
