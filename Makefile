# Everything here goes through bin/uv, which finds uv or installs it into .cache/.
UV := bin/uv

.PHONY: help dist bench demo test test-all test-quick suites gates format lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: ## A thousand jobs on a fresh SQLite file, through a real runtime
	@$(UV) run --quiet --no-default-groups python -m demo

test: ## The whole suite on SQLite, then on a PostgreSQL of its own; both always run
	@$(MAKE) --no-print-directory suites DATABASES="sqlite postgres"

test-quick: ## What is answered within a minute and a half: SQLite, without processes, browsers and web servers
	@$(UV) run pytest -q -n 2 --dist loadfile -m "not once and not processes"

test-all: ## The same on every database there is here: see CONTRIBUTING.md for MariaDB and MySQL
	@$(MAKE) --no-print-directory suites DATABASES="sqlite mariadb mysql postgres"

# What needs a browser, a web server or no database needs one, the last. Four run at once, as they mostly wait. Tests
# with real processes and clocks can fail beside others on a busy machine: what fails is shown, and counts if it fails
# again by itself.
suites:
	@failed=; for database in $(DATABASES); do \
		which="not once and not pure"; group=; server=own; \
		case $$database in \
			mariadb) server=$$DJ_QUEUE_TEST_MARIADB; group="--group mysql" ;; \
			mysql) server=$$DJ_QUEUE_TEST_MYSQL; group="--group mysql" ;; \
			postgres) which= ;; \
		esac; \
		if [ -z "$$server" ]; then echo "== skipped: $$database, because no variable names a server"; continue; fi; \
		echo "== $$database"; \
		export DJ_QUEUE_TEST_DB=$$database; \
		$(UV) run $$group pytest -q -n 4 --dist loadfile -m "$$which" && continue; \
		echo "== $$database: what failed, once more and alone"; \
		$(UV) run $$group pytest -q --last-failed --last-failed-no-failures=none || failed="$$failed $$database"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed on:$$failed" >&2; exit 1; fi

bench: ## Concurrency keys and many queues beside another queue; see bench/README.md
	$(UV) run python -m bench.run

gates: ## Format, lint, types, layers
	$(UV) run ruff format --check
	$(UV) run ruff check
	$(UV) run mypy
	$(UV) run pyright
	$(UV) run lint-imports

# A migration's name is no module's name: W004 knows no such files.
dist: ## Wheels and source distributions of all five in dist/, checked
	rm -rf dist
	$(UV) build --quiet --all-packages
	$(UV) tool run twine check --strict dist/*
	$(UV) tool run check-wheel-contents --ignore W004 dist/*.whl

format: ## Format and fix what can be fixed
	$(UV) run ruff format
	$(UV) run ruff check --fix

lock: ## Resolve the lock file anew
	$(UV) lock

clean: ## Remove what the targets above have made
	rm -rf .venv .cache .tox .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
