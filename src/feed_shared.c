/*
 * feed_shared.c
 *		How sessions wake the projector of their database and wait for it.
 *
 * Owns SagaShared.feeds, but for the fields that projector.c publishes.  The
 * commit callback is all that a writer pays for projections: one look at a
 * flag, and a signal when the projector sleeps.  Touches no table.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "feed_shared.h"

static SagaFeedShared *mine = NULL;
static object_access_hook_type prev_access_hook = NULL;
static bool announce = false;	/* this transaction changed the projections */

SagaFeedShared *
saga_feed_shared(bool claim)
{
	SagaFeedShared *found = NULL;

	if (SagaShmem == NULL)
		return NULL;
	if (mine != NULL && mine->dboid == MyDatabaseId)
		return mine;
	if (!claim && pg_atomic_read_u32(&SagaShmem->nfeeds) == 0)
		return NULL;
	LWLockAcquire(&SagaShmem->lock, claim ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < SAGA_MAX_DATABASES && found == NULL; i++)
		if (SagaShmem->feeds[i].dboid == MyDatabaseId)
			found = &SagaShmem->feeds[i];
	for (int i = 0; claim && i < SAGA_MAX_DATABASES && found == NULL; i++)
		if (!OidIsValid(SagaShmem->feeds[i].dboid))
		{
			found = &SagaShmem->feeds[i];
			found->dboid = MyDatabaseId;
			found->wanted = false;
			found->latch = NULL;
			found->not_before = 0;
			pg_atomic_write_u64(&found->position, 0);
			pg_atomic_write_u64(&found->looked_at, 0);
			pg_atomic_write_u64(&found->wanted_position, 0);
			pg_atomic_fetch_add_u32(&SagaShmem->nfeeds, 1);
		}
	LWLockRelease(&SagaShmem->lock);
	mine = found;
	return found;
}

static void
set_latch(SagaFeedShared *feed)
{
	Latch	   *latch = feed->latch;

	if (latch)
		SetLatch(latch);
}

void
saga_projector_kick(void)
{
	SagaFeedShared *feed = saga_feed_shared(false);

	if (feed)
		set_latch(feed);
}

static void
announce_change(void)
{
	SagaFeedShared *feed = saga_feed_shared(true);

	if (feed == NULL)
		return;
	pg_atomic_fetch_add_u32(&feed->changed, 1);
	if (feed->latch)
		set_latch(feed);
	else
	{
		feed->wanted = true;
		saga_wake_launcher();
	}
}

static void
at_xact_end(XactEvent event, void *arg)
{
	SagaFeedShared *feed;

	if (event == XACT_EVENT_COMMIT)
	{
		if (announce)
			announce_change();
		feed = saga_feed_shared(false);
		if (feed != NULL && pg_atomic_read_u32(&feed->asleep) != 0 &&
			TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
			pg_atomic_exchange_u32(&feed->asleep, 0) != 0)
			set_latch(feed);
		announce = false;
	}
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		announce = false;
}

/*
 * DROP DATABASE refuses while a slot of the database is in use, before it ends
 * anybody's session: let go of it.
 */
static void
release_slot(Oid dboid)
{
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->feeds[i].dboid == dboid)
			SagaShmem->feeds[i].not_before = GetCurrentTimestamp() + 10 * USECS_PER_SEC;
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		for (int tries = 0; tries < 500 && slot->kind == SAGA_WORKER_PROJECTOR &&
			 slot->dboid == dboid && slot->pid != 0; tries++)
		{
			CHECK_FOR_INTERRUPTS();
			if (tries % 100 == 0)
				kill(slot->pid, SIGTERM);
			pg_usleep(10000);
		}
	}
}

static void
on_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_access_hook)
		prev_access_hook(access, classId, objectId, subId, arg);
	if (access == OAT_DROP && classId == DatabaseRelationId)
		release_slot(objectId);
}

void
saga_feed_shared_init(void)
{
	RegisterXactCallback(at_xact_end, NULL);
	prev_access_hook = object_access_hook;
	object_access_hook = on_access;
}

void
saga_projector_wake_at_commit(void)
{
	announce = true;
}

bool
saga_projector_position(XLogRecPtr *position)
{
	SagaFeedShared *feed = saga_feed_shared(false);

	if (feed == NULL || feed->latch == NULL)
		return false;
	*position = pg_atomic_read_u64(&feed->position);
	return true;
}

bool
saga_projector_wait(XLogRecPtr until, long timeout_ms)
{
	SagaFeedShared *feed = saga_feed_shared(false);
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	uint64		wanted;
	bool		reached = false;

	if (feed == NULL)
	{
		/* none has run since the server started; one may come */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(0, Min(timeout_ms, 100)), saga_wait_event("SagaProjectionWait"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		return false;
	}
	if (feed->latch != NULL && pg_atomic_read_u64(&feed->position) >= until)
		return true;
	wanted = pg_atomic_read_u64(&feed->wanted_position);
	while (wanted < until &&
		   !pg_atomic_compare_exchange_u64(&feed->wanted_position, &wanted, until))
		;
	ConditionVariablePrepareToSleep(&feed->moved);
	set_latch(feed);
	for (;;)
	{
		long		left;

		reached = feed->latch != NULL &&
			pg_atomic_read_u64(&feed->position) >= until;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (reached || left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&feed->moved, left,
										   saga_wait_event("SagaProjectionWait"));
	}
	ConditionVariableCancelSleep();
	return reached;
}
