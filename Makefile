# saga: distributed transactions inside PostgreSQL
#
#   make            build for the PostgreSQL that PG_CONFIG names
#   make install    install it there
#   make demo       the leading examples, on throw-away servers
#   make example NAME=video     one of examples/
#   make check      all tests, on throw-away servers
#   make check-regress | check-isolation | check-tap [TESTS='t/001_basic.pl']
#                   one kind of them
#   make sim        the state machine alone, against random events
#   make shell      a shell with a private server in its path
#
# demo, check and shell install missing Debian packages when run as root, and
# never touch the PostgreSQL installation or clusters of the system.  WERROR=1
# (or CI) makes warnings errors.

PG_MAJOR ?= 15
here := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))

ours := demo example check check-build check-sim check-regress check-isolation \
	check-tap sim shell

ifneq ($(filter $(ours),$(MAKECMDGOALS)),)

# These need no PGXS, which may not be installed yet.
export PG_MAJOR TESTS SIM_ARGS EXAMPLE_COUNT

.PHONY: $(ours)
demo:
	@$(here)tools/sandbox examples/orders/demo
	@$(here)tools/sandbox examples/cqrs/demo
	@$(here)tools/sandbox examples/transfer/demo
example:
	@$(here)tools/sandbox examples/$(NAME)/demo
check:
	@$(here)tools/check build sim regress isolation tap
check-build check-sim check-regress check-isolation check-tap: check-%:
	@$(here)tools/check $*
sim:
	@$(here)tools/sim $(SIM_ARGS)
shell:
	@$(here)tools/sandbox -i bash

else

MODULE_big = saga
EXTENSION = saga
OBJS = $(patsubst $(here)%.c,%.o,$(sort $(wildcard $(here)src/*.c)))

DATA = saga--1.0.sql

PG_CPPFLAGS = -I$(here)src -I$(libpq_srcdir) -MMD -MP
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter \
	-Wno-declaration-after-statement
ifneq ($(filter-out 0 false no,$(WERROR) $(CI)),)
PG_CFLAGS += -Werror
endif
ifneq ($(findstring clang,$(CC)),)
# PostgreSQL hands on flags of the compiler that it was built with.
PG_CFLAGS += -Wno-unknown-warning-option \
	-Wno-ignored-optimization-argument -Wno-ignored-attributes
endif
SHLIB_LINK = -lpq -lcares -lcurl
EXTRA_CLEAN = $(OBJS:.o=.d)

# No bitcode for inlining unless it is asked for: make with_llvm=yes.
ifneq ($(origin with_llvm),command line)
override with_llvm = no
endif

PG_CONFIG ?= $(firstword $(wildcard \
	/usr/lib/postgresql/$(PG_MAJOR)/bin/pg_config) pg_config)
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

-include $(OBJS:.o=.d)

# A build elsewhere (make -f .../Makefile) begins in an empty directory.
$(shell mkdir -p src)

endif
