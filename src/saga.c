/*
 * saga.c
 *		Module start: settings, shared memory, the launcher.
 *
 * Owns the settings.  Touches no table.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/guc.h"

#include "compat.h"
#include "feed_shared.h"
#include "guc.h"
#include "projection_read.h"
#include "projection_stat.h"
#include "saga.h"
#include "server.h"

SAGA_MODULE_MAGIC;

int			saga_coordinators = 1;
int			saga_executors = 2;
int			saga_max_running = 10000;
int			saga_safety_poll_interval = 30000;
int			saga_retention = 30 * 86400;
int			saga_barrier_retention = 7 * 86400;
int			saga_max_payload = 1024 * 1024;
bool		saga_log_payloads = true;
bool		saga_allow_superuser_steps = false;
bool		saga_allow_test = false;
char	   *saga_host_guard = NULL;
char	   *saga_operator = NULL;
bool		saga_check_batches = false;
int			saga_test_delay = 0;
int			saga_batch_rows = 100000;
int			saga_batch_time = 100;
int			saga_max_slot_lag = 4096;
int			saga_read_consistency = SAGA_READ_EVENTUAL;
int			saga_read_timeout = 5000;

static const struct config_enum_entry consistency_options[] = {
	{"eventual", SAGA_READ_EVENTUAL, false},
	{"session", SAGA_READ_SESSION, false},
	{"strict", SAGA_READ_STRICT, false},
	{NULL, 0, false}
};

void		_PG_init(void);

static void
define_settings(void)
{
	DefineCustomBoolVariable("saga.allow_superuser_steps",
							 "Allows local steps of definitions that a superuser owns.",
							 "Local actions run with the rights of the definition's owner.",
							 &saga_allow_superuser_steps, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("saga.allow_test",
							 "Allows saga.test_run() and the functions around it.",
							 "They drive sagas within a session, with made-up answers, and roll back.",
							 &saga_allow_test, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.barrier_retention",
							"Sets how long participants keep barrier rows after a saga's end.",
							"A call that arrives later than this is refused by the participant.",
							&saga_barrier_retention, 7 * 86400, 3600, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.batch_rows",
							"Sets at how many changed rows the projector begins a batch without delay.",
							"A batch takes all that is visible when it begins.",
							&saga_batch_rows, 100000, 100, INT_MAX,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.batch_time",
							"Sets how long the projector gathers changes for a batch under load.",
							"Longer batches cost less; single changes are applied at once.",
							&saga_batch_time, 100, 0, 60000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.coordinators",
							"Sets the number of coordinators of each database that has the extension.",
							NULL,
							&saga_coordinators, 1, 1, SAGA_MAX_COORDINATORS,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.executors",
							"Sets the number of executors of each coordinator.",
							"Executors run local actions; with two or more, one is always free of long ones.",
							&saga_executors, 2, 1, 32,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("saga.host_guard",
							   "Names the high-availability cluster this server belongs to.",
							   "Equal on all its members.  Where it differs from the one sagas ran under, or is unset on another host, all sagas are held until saga.take_over() is called.",
							   &saga_host_guard, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("saga.log_payloads",
							 "Keeps results of steps readable in saga.log for those who only monitor.",
							 "When off, results and messages are shown to the definition's owner and operators only.",
							 &saga_log_payloads, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.max_payload",
							"Sets the largest input, result or definition that is accepted.",
							NULL,
							&saga_max_payload, 1024 * 1024, 1024, 256 * 1024 * 1024,
							PGC_SIGHUP, GUC_UNIT_BYTE, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.max_running",
							"Sets how many sagas a coordinator works on at a time.",
							"Others wait in state pending, oldest first.",
							&saga_max_running, 10000, 1, 1000000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.max_slot_lag",
							"Sets how much WAL projections may hold back.",
							"Those that lag by more are given up as stale and rebuilt.",
							&saga_max_slot_lag, 4096, 16, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB, NULL, NULL, NULL);
	DefineCustomStringVariable("saga.operator",
							   "Names the person behind an operator's verb, where a pool hides the role.",
							   NULL,
							   &saga_operator, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("saga.read_consistency",
							 "Sets what reads of projections wait for.",
							 "eventual: nothing; session: what this session has committed; strict: what anybody has committed before the read.",
							 &saga_read_consistency, SAGA_READ_EVENTUAL, consistency_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.read_timeout",
							"Sets how long a read of a projection waits before it fails.",
							NULL,
							&saga_read_timeout, 5000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.retention",
							"Sets how long ended sagas and their log are kept.",
							NULL,
							&saga_retention, 30 * 86400, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.safety_poll_interval",
							"Sets how often a coordinator looks for work it was not told of.",
							"A net under the wake-up at commit; also finds the work of prepared transactions.",
							&saga_safety_poll_interval, 30000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomBoolVariable("saga.check_batches",
							 "Compares every projection with its query after every batch.",
							 "A projection that differs is parked.  For tests: this runs each query each time.",
							 &saga_check_batches, false,
							 PGC_SIGHUP, GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	DefineCustomIntVariable("saga.test_delay",
							"Sets how long the projector waits at each step of a batch.",
							"For tests that kill it there.",
							&saga_test_delay, 0, 0, 60000,
							PGC_SIGHUP, GUC_UNIT_MS | GUC_NOT_IN_SAMPLE, NULL, NULL, NULL);
	MarkGUCPrefixReserved("saga");
}

void
_PG_init(void)
{
	BackgroundWorker launcher;

	define_settings();
	saga_server_init();
	saga_projection_wait_init();
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	saga_shmem_request();
	saga_feed_shared_init();
	saga_projection_stat_request();

	memset(&launcher, 0, sizeof(launcher));
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_library_name, "saga", sizeof(launcher.bgw_library_name));
	strlcpy(launcher.bgw_function_name, "saga_launcher_main",
			sizeof(launcher.bgw_function_name));
	strlcpy(launcher.bgw_name, "saga launcher", sizeof(launcher.bgw_name));
	strlcpy(launcher.bgw_type, "saga launcher", sizeof(launcher.bgw_type));
	RegisterBackgroundWorker(&launcher);
}
