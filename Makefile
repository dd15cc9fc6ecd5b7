# SPDX-License-Identifier: Apache-2.0
# The front door. Each target does all the set-up it needs; CMake and Ninja do the work underneath.
BUILD ?= build
JOBS  ?= $(shell nproc)

.PHONY: help setup configure cli build everything demo demo-real check gpu-check test soak bench wheel clean format
help:
	@echo "make demo       install what is missing, build, run the main job"
	@echo "make check      the same, then all tests, sanitizers and fuzzers"
	@echo "make build      $(BUILD)/bin/weir; where nvcc is, $(BUILD)/lib/libweir_cuda.so too"
	@echo "make wheel      dist/weir-*.whl: Weir in Python, with every library that it needs inside"
	@echo "make test       the tests of the plain build alone"
	@echo "make soak       2,000 refits while workers, directories and Redis are killed; SOAK=OPTIONS"
	@echo "make demo-real  the main job on a published model"
	@echo "make bench      measure conversions and transports beside their limits"
	@echo "make gpu-check  all that needs a GPU; PACK=DIRECTORY: with what was built elsewhere"

setup:
	@scripts/setup

configure: setup
	@mkdir -p $(BUILD)
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DWEIR_UCX=ON -DWEIR_GRPC=ON \
	       -DWEIR_REDIS=ON -DWEIR_HTTP=ON -DWEIR_YAML=ON -DWEIR_CURL=ON -DWEIR_WERROR=ON >$(BUILD)/cmake.log 2>&1 || { cat $(BUILD)/cmake.log; exit 1; }

cli: configure
	@ninja -C $(BUILD) -j $(JOBS) weir_cli

build: cli
	@! ninja -C $(BUILD) -t query weir_cuda >/dev/null 2>&1 || \
		ninja -C $(BUILD) -j $(JOBS) weir_cuda

everything: configure
	@ninja -C $(BUILD) -j $(JOBS)

wheel: build
	@scripts/wheel --whole $(BUILD) dist

demo: cli
	@$(BUILD)/bin/weir demo

demo-real: cli
	@scripts/demo-real $(BUILD)

test: everything
	@cd $(BUILD) && ctest --output-on-failure

check: everything
	@scripts/check $(BUILD)

soak: cli
	@scripts/soak $(BUILD) $(SOAK)
	@scripts/soak $(BUILD) $(SOAK) --store redis

# A machine without Debian's packages runs what `scripts/gpu-check pack` has collected on another.
ifdef PACK
gpu-check:
	@scripts/gpu-check run $(PACK)
else
gpu-check: everything
	@scripts/gpu-check run $(BUILD)
endif

bench: build
	@ninja -C $(BUILD) -j $(JOBS) bench_directory bench_manifest
	@scripts/bench $(BUILD)

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf $(BUILD) $(BUILD)-* dist
