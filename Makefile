.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test lint clean-cache

help:                ## What can be made
	@sed -n 's/^\([a-z-]*\): *\(.*\)## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:               ## Bring what is missing: Debian packages, .venv, collections
	@tools/setup

demo:                ## Roll Lawyers Hub back on this machine, and tell what happened
	@tools/setup demo
	@tools/engine start
	@.venv/bin/python tools/demo.py

demo-down:           ## Take all of the demo away
	@tools/demo-down

test:                ## Lint, unit, project, integration and Molecule tests
	@tools/test

lint:                ## Only the linters
	@tools/setup
	@tools/test lint

clean-cache:         ## Remove the cached base image and downloads
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/balik"/*.zst "$${XDG_CACHE_HOME:-$$HOME/.cache}/balik"/*.whl
