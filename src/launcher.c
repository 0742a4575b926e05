/*
 * launcher.c
 *		The saga launcher: one per server.  Starts the workers of each database
 *		that has the extension, and starts them again when they go.
 *
 * Compares what should run with what runs, at every wake-up and at every
 * safety poll.  It cannot see into databases, so coordinator 0 of each is also
 * the probe: it reports whether the extension is there and leaves if not; the
 * database is then left alone until CREATE EXTENSION or a server start.
 *
 * The workers are registered never-restart: the server's own restart would
 * bring back workers of dropped databases, and a second set after a crash.
 * Owns SagaShared.databases.  Touches no table of ours.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "guc.h"
#include "saga.h"

#define FIRST_DELAY		INT64CONST(200000)	/* us; doubles with each early end */
#define LONGEST_DELAY	INT64CONST(5000000)
#define LONG_LIFE		INT64CONST(30000000)	/* a worker this old starts afresh */

/* How this launcher came to start one worker of a database. */
typedef struct Start
{
	Oid			dboid;
	SagaWorkerKind kind;
	int			number;
	TimestampTz last;			/* last start, 0 = never */
	int64		delay;			/* before the next one */
} Start;

static Start starts[SAGA_MAX_WORKERS];
static int	nstarts = 0;

static Start *
start_of(Oid dboid, SagaWorkerKind kind, int number)
{
	for (int i = 0; i < nstarts; i++)
		if (starts[i].dboid == dboid && starts[i].kind == kind &&
			starts[i].number == number)
			return &starts[i];
	if (nstarts == SAGA_MAX_WORKERS)
		nstarts = 0;			/* only delays are lost */
	memset(&starts[nstarts], 0, sizeof(Start));
	starts[nstarts].dboid = dboid;
	starts[nstarts].kind = kind;
	starts[nstarts].number = number;
	return &starts[nstarts++];
}

static SagaWorkerSlot *
running(Oid dboid, SagaWorkerKind kind, int number)
{
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->kind == kind && slot->dboid == dboid && slot->number == number)
			return slot;
	}
	return NULL;
}

static void
note_no_slot(SagaDatabase *db, bool no_slot)
{
	if (no_slot && !db->no_slot)
		ereport(LOG,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a saga worker for database with OID %u: no worker process is free",
						db->dboid),
				 errhint("Increase max_worker_processes (now %d) by at least %d for each database with the extension and restart the server.",
						 max_worker_processes, 3 + saga_coordinators * (1 + saga_executors))));
	db->no_slot = no_slot;
}

/* Start one worker unless its delay is not over; returns when to look again. */
static TimestampTz
start_worker(SagaDatabase *db, SagaWorkerKind kind, int number, TimestampTz now)
{
	Start	   *start = start_of(db->dboid, kind, number);
	SagaWorkerSlot *slot;
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	const char *type = kind == SAGA_WORKER_COORDINATOR ? "saga coordinator" :
		kind == SAGA_WORKER_EXECUTOR ? "saga executor" : "saga projector";

	if (start->last != 0)
	{
		if (now - start->last > LONG_LIFE)
			start->delay = 0;
		if (start->delay > 0 && now < start->last + start->delay)
			return start->last + start->delay;
	}
	slot = saga_slot_claim(kind, db->dboid, number);
	if (slot == NULL)
	{
		note_no_slot(db, true);
		return now + LONGEST_DELAY;
	}
	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "saga", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name,
			kind == SAGA_WORKER_COORDINATOR ? "saga_coordinator_main" :
			kind == SAGA_WORKER_EXECUTOR ? "saga_executor_main" : "saga_projector_main",
			sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, sizeof(worker.bgw_name), "%s %d of database %u",
			 type, number, db->dboid);
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	worker.bgw_main_arg = Int32GetDatum(saga_slot_index(slot));
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		saga_slot_free(slot);
		note_no_slot(db, true);
		return now + 5 * USECS_PER_SEC;
	}
	note_no_slot(db, false);
	pfree(handle);
	start->delay = start->delay == 0 ? FIRST_DELAY : Min(start->delay * 2, LONGEST_DELAY);
	start->last = now;
	return DT_NOEND;
}

/*
 * A worker that never attached (its start failed, its database went away)
 * leaves its slot behind.
 */
static void
free_stillborn_slots(TimestampTz now)
{
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->kind != SAGA_WORKER_NONE && slot->kind != SAGA_WORKER_LAUNCHER &&
			slot->pid == 0 && now > slot->started_at + 10 * USECS_PER_SEC)
			saga_slot_free(slot);
	}
}

static void
list_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	bool		seen[SAGA_MAX_DATABASES] = {0};

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		int			place = -1;

		if (!form->datallowconn || form->datistemplate)
			continue;
		LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
		for (int i = 0; i < SAGA_MAX_DATABASES; i++)
			if (SagaShmem->databases[i].dboid == form->oid)
				place = i;
		for (int i = 0; i < SAGA_MAX_DATABASES && place < 0; i++)
			if (!OidIsValid(SagaShmem->databases[i].dboid))
			{
				SagaShmem->databases[i].dboid = form->oid;
				SagaShmem->databases[i].status = SAGA_DB_UNKNOWN;
				SagaShmem->databases[i].no_slot = false;
				place = i;
			}
		LWLockRelease(&SagaShmem->lock);
		if (place >= 0)
			seen[place] = true;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
	{
		Oid			dboid = SagaShmem->databases[i].dboid;

		if (seen[i] || !OidIsValid(dboid))
			continue;
		SagaShmem->databases[i].dboid = InvalidOid;
		for (int k = 0; k < SAGA_MAX_DATABASES; k++)
			if (SagaShmem->feeds[k].dboid == dboid)
				SagaShmem->feeds[k].dboid = InvalidOid;
	}
	LWLockRelease(&SagaShmem->lock);
}

/* Ask workers beyond the configured number to end (after a reload). */
static void
stop_surplus(void)
{
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->pid != 0 &&
			((slot->kind == SAGA_WORKER_COORDINATOR && slot->number >= saga_coordinators) ||
			 (slot->kind == SAGA_WORKER_EXECUTOR &&
			  slot->number >= saga_coordinators * saga_executors)))
			kill(slot->pid, SIGTERM);
	}
}

static void
forget_delays(Oid dboid)
{
	for (int i = 0; i < nstarts; i++)
		if (starts[i].dboid == dboid)
			starts[i].last = starts[i].delay = 0;
}

/* Has somebody made a projection there since the server started, or before? */
static bool
projector_wanted(Oid dboid)
{
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->feeds[i].dboid == dboid && SagaShmem->feeds[i].wanted)
			return saga_now() >= SagaShmem->feeds[i].not_before;
	return false;
}

/* Bring what runs to what should run; returns when to look again. */
static TimestampTz
reconcile(void)
{
	TimestampTz now = saga_now();
	TimestampTz again = DT_NOEND;

	free_stillborn_slots(now);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
	{
		SagaDatabase *db = &SagaShmem->databases[i];
		int			coordinators = 0;
		int			executors = 0;

		if (!OidIsValid(db->dboid) || db->status == SAGA_DB_ABSENT)
			continue;
		if (db->fresh)
		{
			db->fresh = false;
			forget_delays(db->dboid);
		}
		coordinators = db->status == SAGA_DB_PRESENT ? saga_coordinators : 1;
		if (db->status == SAGA_DB_PRESENT)
			executors = saga_coordinators * saga_executors;

		for (int n = 0; n < coordinators; n++)
			if (running(db->dboid, SAGA_WORKER_COORDINATOR, n) == NULL)
				again = Min(again, start_worker(db, SAGA_WORKER_COORDINATOR, n, now));
		for (int n = 0; n < executors; n++)
			if (running(db->dboid, SAGA_WORKER_EXECUTOR, n) == NULL)
				again = Min(again, start_worker(db, SAGA_WORKER_EXECUTOR, n, now));
		if (db->status == SAGA_DB_PRESENT && projector_wanted(db->dboid) &&
			running(db->dboid, SAGA_WORKER_PROJECTOR, 0) == NULL)
			again = Min(again, start_worker(db, SAGA_WORKER_PROJECTOR, 0, now));
	}
	return again;
}

static void
forget_latch(int code, Datum arg)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	SagaShmem->launcher_latch = NULL;
	LWLockRelease(&SagaShmem->lock);
}

void
saga_launcher_main(Datum main_arg)
{
	TimestampTz next_list = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	before_shmem_exit(forget_latch, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	SagaShmem->launcher_latch = MyLatch;
	LWLockRelease(&SagaShmem->lock);
	pgstat_report_appname("saga launcher");

	for (;;)
	{
		TimestampTz now = saga_now();
		TimestampTz again;
		long		timeout;

		ResetLatch(MyLatch);
		saga_worker_interrupts();
		if (saga_worker_reloaded)
		{
			saga_worker_reloaded = false;
			stop_surplus();
		}

		/* new databases announce themselves only by CREATE EXTENSION */
		if (now >= next_list || SagaShmem->relist)
		{
			SagaShmem->relist = false;
			list_databases();
			next_list = now + (int64) saga_safety_poll_interval * 1000;
		}
		again = Min(reconcile(), next_list);
		timeout = Max(10, (again - saga_now()) / 1000 + 1);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 timeout, saga_wait_event("SagaLauncherMain"));
	}
}
