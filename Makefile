# make            ./train: with nvcc for the cards in this machine, else with the C++ compiler
# make ARCH=90a   with nvcc for one architecture (80 89 90a 100f 120f), ARCH=all for all of them, CUDA=0 without nvcc
# make ACT=float  ./train-f32, in which activations and operands are FP32
# make test | asan | fuzz | bench | loc | format | clean
# make test-report   report.html in a headless browser, where there is one
# make ptxas     registers and spills of the hot kernels, for every architecture or ARCH=
# make test-exhaustive   every format's encode() on all 2^32 floats; takes minutes
ifeq ($(MAKELEVEL),0)
  MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
endif
CXX      ?= g++
NVCC     ?= $(firstword $(wildcard $(addsuffix /nvcc,$(subst :, ,$(PATH)) /usr/local/cuda/bin)))
CUDA     ?= auto
MARCH    ?= native
ACT      ?= bf16
OPT      ?= $(if $(SAN)$(filter standin double,$(ACT)),-O1,-O3)
ALL_ARCH := 80 89 90a 100f 120f

# --- which machine are we building for? --------------------------------------------------------------------------
CARDS := $(if $(filter auto,$(CUDA)),$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$$' | tr -d . | sort -u))
KNOWN_CARDS := 80:80 86:80 87:80 89:89 90:90a 100:100f 103:100f 120:120f 121:120f
arch_of      = $(patsubst $(1):%,%,$(filter $(1):%,$(KNOWN_CARDS)))
ifeq ($(CUDA),0)
  WHY := CUDA=0
else ifeq ($(NVCC),)
  WHY := no nvcc on PATH
  ifneq ($(ARCH),)
    $(error ARCH=$(ARCH) needs nvcc, and none is on PATH or in /usr/local/cuda/bin. hint: install the CUDA toolkit, or leave ARCH out for a CPU build)
  endif
else ifneq ($(ARCH),)
  ARCHS := $(if $(filter all,$(ARCH)),$(ALL_ARCH),$(ARCH))
  WHY   := ARCH=$(ARCH)
else ifneq ($(CARDS),)
  ARCHS := $(sort $(foreach c,$(CARDS),$(or $(call arch_of,$(c)),$(error a card of compute capability $(c) is not known here. hint: name the nearest of $(ALL_ARCH) with ARCH=, or build with CUDA=0))))
  WHY   := this machine has compute capability $(CARDS)
else
  WHY := nvcc is here but no GPU is
endif
ifneq ($(ARCHS),)
  $(foreach a,$(ARCHS),$(if $(filter $(a),$(ALL_ARCH)),,$(error ARCH=$(a) is not one of $(ALL_ARCH))))
endif

# --- how ---------------------------------------------------------------------------------------------------------
# Numerics is the subject: no contraction, no fast-math. -fno-math-errno and -fno-trapping-math change no result; they
# allow loops to vectorize. The binary is for the machine that builds it (MARCH=x86-64-v3 for another one).
OPENMP   := $(shell echo 'int main(){}' | $(CXX) -x c++ -fopenmp - -o /dev/null 2>/dev/null && echo -fopenmp)
MARCHFLAG := $(shell echo 'int main(){}' | $(CXX) -x c++ -march=$(MARCH) - -o /dev/null 2>/dev/null && echo -march=$(MARCH))
WIDE     := $(shell echo 'int main(){}' | $(CXX) -x c++ $(MARCHFLAG) -mprefer-vector-width=512 - -o /dev/null 2>/dev/null && echo -mprefer-vector-width=512)
NUMERIC  := -ffp-contract=off -fno-math-errno -fno-trapping-math
NORESTRICT := $(if $(findstring clang,$(shell $(CXX) --version)),,-Wno-restrict) # g++ 12 sees ghosts in std::string
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unversioned)
HOST     := $(OPT) $(MARCHFLAG) $(WIDE) $(NUMERIC) $(OPENMP) -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi $(NORESTRICT) $(SAN)
KNOWN_ACT := bf16:test: float:f32:-DACT_FLOAT double:f64:-DREAL_DOUBLE standin:standin:-DULP_STANDIN:-Itests/cuda_on_cpu
THIS_ACT := $(subst :, ,$(or $(filter $(ACT):%,$(KNOWN_ACT)),$(error ACT=$(ACT) is not one of bf16 float)))
PREFIX   := $(word 2,$(THIS_ACT))
DEFS     := $(wordlist 3,9,$(THIS_ACT))
CXXFLAGS += -std=c++20 $(HOST) $(DEFS) -MMD -MP -I.
LDLIBS   += $(OPENMP) -pthread

comma    := ,
GENCODE   = $(foreach a,$(ARCHS),-gencode arch=compute_$(a)$(comma)code=sm_$(a)) $(if $(filter all,$(ARCH)),-gencode arch=compute_120$(comma)code=compute_120)
NVFLAGS   = -x cu -std=c++20 -O3 -fmad=false --extended-lambda --expt-relaxed-constexpr $(GENCODE) -Xcudafe --display_error_number \
            $(DEFS) -MMD -MP -I. -Xcompiler $(subst $() ,$(comma),$(strip $(OPT) $(MARCHFLAG) $(WIDE) $(NUMERIC) $(OPENMP) -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi -Wno-unused-parameter))

# Objects of different kinds never share a folder, so that changing ARCH, ACT or the sanitizer needs no `make clean`;
# what does not know `act` nor the GPU is compiled once for all of them.
KIND  := $(if $(ARCHS),sm$(subst $() ,-,$(ARCHS)),cpu)-$(ACT)$(if $(SAN),-san)
B     := build/$(KIND)
BIN   := $(if $(SAN),$(B)/train,$(if $(filter float,$(ACT)),train-f32,train))
PLAIN_DIR := build/plain$(if $(SAN),-san)
PLAIN := $(patsubst %.cpp,$(PLAIN_DIR)/%.o,$(filter-out lab/cast.cpp,$(wildcard ops/*.cpp run/*.cpp report/*.cpp lab/*.cpp data/*.cpp))) \
         $(patsubst %.cu,$(B)/%.o,$(wildcard ops/*.cu)) $(if $(filter bf16 float,$(ACT)),$(B)/lab/cast.o)

.PHONY: all say test test-one gpu-tests ptxas test-report test-exhaustive asan fuzz bench loc format format-check clean FORCE
all: say $(BIN)
say:
	@echo "$(BIN): $(if $(ARCHS),nvcc for sm_$(subst $() , sm_,$(ARCHS)),$(CXX)$(if $(OPENMP),, without OpenMP (one thread))$(if $(filter 0,$(CUDA)),$(comma) CPU only)) ($(WHY)).$(if $(ARCHS), CPU build: make CUDA=0.,$(if $(NVCC), GPU build: make ARCH=90a (or 80 89 100f 120f) or ARCH=all., GPU build: install the CUDA toolkit.))"

# ./train is linked again whenever another kind of build was the last to write it.
$(BIN): $(B)/train.o $(PLAIN) $(B)/.last
	$(if $(ARCHS),$(NVCC) $(GENCODE) -Xcompiler $(OPENMP) -o $@ $(filter %.o,$^) -lcublasLt,$(CXX) $(SAN) -o $@ $(filter %.o,$^) $(LDLIBS))
$(B)/.last: FORCE
	@mkdir -p $(B); echo '$(KIND)' | cmp -s - build/last-$(notdir $(BIN)) || { echo '$(KIND)' > build/last-$(notdir $(BIN)); touch $@; }; [ -e $@ ] || touch $@
# What computes is in ops/, and that is all that nvcc sees. The rest says what to do, and -O1 takes half the time.
EASY      = $(filter-out -O3,$(CXXFLAGS)) -O1
$(B)/train.o: $(B)/%.o: %.cu Makefile
	@mkdir -p $(@D)
	$(CXX) -x c++ $(EASY) -c $< -o $@
$(B)/ops/%.o: ops/%.cu Makefile
	@mkdir -p $(@D)
	$(if $(ARCHS),$(NVCC) $(NVFLAGS),$(CXX) -x c++ $(CXXFLAGS)) -c $< -o $@
$(PLAIN_DIR)/run/version.o: CXXFLAGS += -DULP_VERSION='"$(VERSION)"'
$(PLAIN_DIR)/report/report.o: build/report_page.inc
build/report_page.inc: report/report.html Makefile # as one string literal
	@mkdir -p $(@D)
	@{ printf 'R"page('; cat $<; printf ')page"\n'; } > $@.tmp && mv $@.tmp $@
$(B)/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -c $< -o $@
$(PLAIN_DIR)/%.o: DEFS :=
$(PLAIN_DIR)/ops/%.o $(PLAIN_DIR)/lab/%.o: COMPUTES := 1
$(PLAIN_DIR)/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	$(CXX) $(if $(COMPUTES),$(CXXFLAGS),$(EASY)) -c $< -o $@
-include $(shell find build -name '*.d' 2>/dev/null)

# --- tests -------------------------------------------------------------------------------------------------------
# Four programs, by what `act` is: tests/test_*.cpp as in ./train, f32_*.cpp as in ./train-f32, f64_*.cpp with
# real = act = double for finite differences, standin_*.cpp with the GPU's code run on the CPU by tests/cuda_on_cpu.
COMMON   := $(PLAIN_DIR)/tests/main.o $(if $(filter standin,$(ACT)),$(patsubst %.cpp,$(B)/%.o,$(wildcard tests/cuda_on_cpu/*.cpp)))
TESTS    := $(patsubst %.cpp,$(B)/%.o,$(wildcard tests/$(PREFIX)_*.cpp)) $(COMMON)
# Those that compute are worth optimizing; the others, which read what was computed, are compiled in half the time.
COMPUTE  := attention casts corpus data formats formats_golden lanes matmul_cpu numbers recipes
TESTFLAGS = $(filter-out -O3 -O1,$(CXXFLAGS)) $(if $(filter-out test_,$(PREFIX)_)$(filter $(COMPUTE),$(*F:test_%=%)),-O$(if $(SAN)$(filter-out test_,$(PREFIX)_),1,2),-O0) -isystem build/doctest $(addprefix -isystem ,$(wildcard $(patsubst %/bin/nvcc,%/include,$(NVCC)) /usr/local/cuda/include))
DOCTEST  := build/doctest/doctest/doctest.h
test:
	+@tests/run.sh
asan:
	+@SAN="-fsanitize=address,undefined -fno-sanitize-recover=all" tests/run.sh
$(B)/tests/all: $(TESTS) $(PLAIN)
	$(CXX) $(SAN) -o $@ $^ $(LDLIBS)
$(B)/tests/%.o: tests/%.cpp Makefile $(DOCTEST)
	@mkdir -p $(@D)
	$(CXX) $(TESTFLAGS) -c $< -o $@
$(PLAIN_DIR)/tests/%.o: DEFS :=
$(PLAIN_DIR)/tests/%.o: tests/%.cpp Makefile $(DOCTEST)
	@mkdir -p $(@D)
	$(CXX) $(TESTFLAGS) -c $< -o $@
$(DOCTEST):
	@tests/get_doctest.sh build/doctest
test-one: $(B)/tests/$(PREFIX)_$(T).o $(COMMON) $(PLAIN)
	$(CXX) $(SAN) -o $(B)/tests/one-$(T) $^ $(LDLIBS) && $(B)/tests/one-$(T)

# The tests that make sense on a card: the same sources, for the cards that ./train is built for; tests/gpu.sh runs them.
GPU_TESTS := $(patsubst %,$(B)/tests/%.o,standin_ops standin_fused standin_flash)
gpu-tests: $(if $(ARCHS),$(B)/tests/gpu-all)
	@$(if $(ARCHS),true,echo "gpu-tests need nvcc, and a card or ARCH="; false)
$(B)/tests/gpu-all: $(GPU_TESTS) $(B)/tests/gpu/memory.o $(COMMON) $(PLAIN)
	$(NVCC) $(GENCODE) -Xcompiler $(OPENMP) -o $@ $^ -lcublasLt
ifneq ($(ARCHS),)
$(GPU_TESTS): CXXFLAGS += -Itests/gpu
endif

# libFuzzer on what reads files and words: make fuzz, SECONDS each; T=words: that target alone. See tests/fuzz/fuzz.h.
SECONDS  ?= $(if $(BRIEF),10,20)
TARGETS  := safetensors files words checkpoint
FUZZFLAGS = -std=c++20 -O1 -g -I. -MMD -MP -Wall -Wextra -Wno-unknown-pragmas -fsanitize=address,undefined -fno-sanitize-recover=all -DULP_VERSION='"fuzz"'
FUZZED   := $(patsubst %.cpp,build/fuzz/%.o,$(filter-out run/table.cpp run/log.cpp run/sample.cpp,$(wildcard run/*.cpp)) data/corpus.cpp)
fuzz:
	+@tests/fuzz/run.sh $(SECONDS) $(or $(T),$(TARGETS))
OPERATIONS := $(patsubst %.cu,$(B)/%.o,$(wildcard ops/*.cu)) $(patsubst %.cpp,$(PLAIN_DIR)/%.o,$(wildcard ops/*.cpp)) # as they are
$(TARGETS:%=build/fuzz/run-%): build/fuzz/run-%: build/fuzz/target-%.o $(FUZZED) $(OPERATIONS)
	clang++ $(FUZZFLAGS) -fsanitize=fuzzer -o $@ $^ -lgomp
$(TARGETS:%=build/fuzz/target-%.o): build/fuzz/target-%.o: tests/fuzz/driver.cpp Makefile
	@mkdir -p $(@D)
	clang++ $(FUZZFLAGS) -fsanitize=fuzzer-no-link -include tests/fuzz/$*.h -DTARGET=fuzz_$* -c $< -o $@
$(FUZZED): build/fuzz/%.o: %.cpp Makefile
	@mkdir -p $(@D)
	clang++ $(FUZZFLAGS) -fsanitize=fuzzer-no-link -c $< -o $@

test-report: all
	@tests/report_browser.sh ./$(BIN)
ptxas: # registers and spills of the hot kernels on every architecture; a spill is a failure
	@tests/ptxas.sh $(or $(NVCC),nvcc) $(if $(filter-out all,$(ARCH)),$(ARCH),$(ALL_ARCH))
test-exhaustive: $(B)/tests/exhaustive
	$<
$(B)/tests/exhaustive: $(B)/tests/exhaustive.o
	$(CXX) $(SAN) -o $@ $^ $(LDLIBS)

# --- looking after the house -------------------------------------------------------------------------------------
SOURCES = $(shell git ls-files '*.cuh' '*.cu' '*.cpp' '*.h')
bench: all
	./$(BIN) bench --recipe bf16,hybrid,e4m3,current,blockwise,mxfp8,mxfp6,mxfp4,nvfp4
	./$(BIN) bench --op casts
.PHONY: experiments # runs what the pages of docs/experiments say, N="3 4": only those, and draws their figures
experiments: all
	@docs/experiments/run.sh $(N)
loc:
	@wc -l train.cu model.cuh fp8.cuh scaling.cuh Makefile README.md | sed '$$d'
	@echo "$$(cat train.cu model.cuh fp8.cuh scaling.cuh ops/* | wc -l) of 5000: train.cu model.cuh fp8.cuh scaling.cuh ops/"
	@echo "$$(cat run/*.h run/*.cpp | wc -l) of 3000: run/"
	@echo "$$(cat lab/* | wc -l): lab/"
	@echo "$$(cat report/* | wc -l): report/, $$(cat report/report.html | wc -l) of them the page"
	@echo "$$(cat data/*.cpp data/*.h data/*.sh | wc -l): data/"
	@echo "$$(cat tests/*.cpp tests/*.h tests/*.sh tests/cuda_on_cpu/* | wc -l): tests/"
# Sources that nvcc sees keep their lambdas on the verb's line, which clang-format cannot: there only the width counts.
PLAIN_SOURCES = $(filter %.cpp %.h,$(SOURCES))
format:
	clang-format -i $(PLAIN_SOURCES)
format-check:
	clang-format --dry-run -Werror $(PLAIN_SOURCES)
	@awk 'length > 120 { print FILENAME ":" FNR ": wider than 120"; bad = 1 } END { exit bad }' $(filter %.cuh %.cu,$(SOURCES))
clean:
	rm -rf build train train-f32
