/*
 * worker.c
 *		The skeleton of every worker: signals, slot, database, transactions.
 *
 * Called by coordinator.c and executor.c.  The only file that begins or ends
 * a transaction in a worker.  Knows no table of ours.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "saga.h"

volatile bool saga_worker_reloaded = true;

static SagaWorkerSlot *my_slot = NULL;

static void
free_my_slot(int code, Datum arg)
{
	if (my_slot)
		saga_slot_free(my_slot);
	my_slot = NULL;
}

/* What a role or database setting could bend under us. */
void
saga_worker_pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"extra_float_digits", "1"},
		{"exit_on_error", "off"},
		{"bytea_output", "hex"},
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"check_function_bodies", "on"},
		{"row_security", "on"},
		{"session_replication_role", "origin"},
		{"standard_conforming_strings", "on"},
		{"synchronous_commit", "off"},
		{"enable_hashjoin", "on"},
		{"jit", "off"},
	};

	for (size_t i = 0; i < lengthof(pinned); i++)
		SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

SagaWorkerSlot *
saga_worker_start(Datum main_arg, bool probe)
{
	SagaWorkerSlot *slot = &SagaShmem->workers[DatumGetInt32(main_arg)];
	Oid			dboid = slot->dboid;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGTERM, die);
	my_slot = slot;
	before_shmem_exit(free_my_slot, (Datum) 0);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	saga_worker_pin_settings();
	saga_slot_attach(DatumGetInt32(main_arg));

	if (probe)
	{
		bool		present;

		StartTransactionCommand();
		present = OidIsValid(get_extension_oid(SAGA_EXTENSION, true));
		CommitTransactionCommand();

		LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
		for (int i = 0; i < SAGA_MAX_DATABASES; i++)
			if (SagaShmem->databases[i].dboid == dboid)
				SagaShmem->databases[i].status = present ? SAGA_DB_PRESENT : SAGA_DB_ABSENT;
		LWLockRelease(&SagaShmem->lock);
		saga_wake_launcher();
		if (!present)
			proc_exit(0);
	}
	return slot;
}

TimestampTz
saga_now(void)
{
	return GetCurrentTimestamp();
}

void
saga_worker_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		saga_worker_reloaded = true;
	}
}

/*
 * The extension is gone, or is another one of the same name: what this process
 * remembers is of the old one.  Tell the launcher, who starts new workers if
 * there is an extension.
 */
static void
leave_database(bool replaced)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->databases[i].dboid == MyDatabaseId)
		{
			SagaShmem->databases[i].fresh = true;
			if (!replaced)
				SagaShmem->databases[i].status = SAGA_DB_ABSENT;
		}
	LWLockRelease(&SagaShmem->lock);
	saga_wake_launcher();
}

bool
saga_worker_enter(const char *activity)
{
	static Oid	mine = InvalidOid;
	Oid			extension;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	extension = get_extension_oid(SAGA_EXTENSION, true);
	if (OidIsValid(extension))
	{
		/* the lock DROP EXTENSION takes first: no deadlock either way */
		LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
		extension = get_extension_oid(SAGA_EXTENSION, true);
	}
	if (!OidIsValid(mine))
		mine = extension;
	if (!OidIsValid(extension) || extension != mine)
	{
		AbortCurrentTransaction();
		leave_database(OidIsValid(extension));
		return false;
	}
	pgstat_report_activity(STATE_RUNNING, activity);
	return true;
}

bool
saga_worker_begin(const char *activity)
{
	if (!saga_worker_enter(activity))
		return false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	PushActiveSnapshot(GetTransactionSnapshot());
	return true;
}

/* See what others committed since the transaction began. */
void
saga_worker_look_again(void)
{
	PopActiveSnapshot();
	PushActiveSnapshot(GetTransactionSnapshot());
}

void
saga_worker_commit(bool flush)
{
	SPI_finish();
	PopActiveSnapshot();
	saga_worker_leave(flush);
}

void
saga_worker_leave(bool flush)
{
	if (flush)
		ForceSyncCommit();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* After an error was caught: nothing of the transaction remains. */
void
saga_worker_abort(void)
{
	AbortCurrentTransaction();
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}
