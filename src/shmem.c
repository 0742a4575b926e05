/*
 * shmem.c
 *		The shared memory of saga: slots, rings, waiters, counters, and the
 *		commit callback that wakes a coordinator.
 *
 * Called by every process.  Owns the segment; touches no table, no SPI, no
 * catalog.  Nothing here is needed for correctness: a coordinator that missed
 * every wake-up finds its work in the tables at the next safety poll.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/memutils.h"

#include "compat.h"
#include "saga.h"

SagaShared *SagaShmem = NULL;

static SagaRing *rings = NULL;
static SagaWaiter *waiters = NULL;
static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

/* Sagas to be announced when this transaction commits. */
typedef struct Announcement
{
	SagaRingEntry entry;
	SubTransactionId subxact;	/* announced if this survives */
} Announcement;

static Announcement *announced = NULL;
static int	nannounced = 0;
static int	maxannounced = 0;
static bool installed = false;	/* CREATE EXTENSION in this transaction */
static bool scheduled = false;	/* schedules changed in this transaction */
static bool callbacks_registered = false;

static int
max_waiters(void)
{
	/* a session may wait for several sagas */
	return 4 * (MaxConnections + max_worker_processes);
}

static Size
rings_offset(void)
{
	return MAXALIGN(sizeof(SagaShared));
}

static Size
waiters_offset(void)
{
	return add_size(rings_offset(),
					MAXALIGN(mul_size(sizeof(SagaRing), SAGA_MAX_COORDINATORS)));
}

static Size
segment_size(void)
{
	return add_size(waiters_offset(), mul_size(sizeof(SagaWaiter), max_waiters()));
}

static void
request_segment(void)
{
	if (prev_request_hook)
		prev_request_hook();
	RequestAddinShmemSpace(segment_size());
	RequestNamedLWLockTranche("saga", 1);
}

static void
initialise_segment(SagaShared *shared)
{
	int			tranche = GetNamedLWLockTranche("saga")->lock.tranche;

	memset(shared, 0, segment_size());
	LWLockInitialize(&shared->lock, tranche);
	LWLockInitialize(&shared->waiter_lock, tranche);
	pg_atomic_init_u32(&shared->nwaiters, 0);
	shared->maxwaiters = max_waiters();
	shared->next_generation = 1;
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &shared->workers[i];

		pg_atomic_init_u32(&slot->asleep, 0);
		pg_atomic_init_u64(&slot->turns, 0);
		pg_atomic_init_u64(&slot->items, 0);
		pg_atomic_init_u64(&slot->loaded, 0);
		pg_atomic_init_u64(&slot->errors, 0);
	}
	for (int i = 0; i < SAGA_MAX_PARTICIPANTS; i++)
	{
		SagaParticipantStat *stat = &shared->participants[i];

		pg_atomic_init_u64(&stat->calls, 0);
		pg_atomic_init_u64(&stat->done, 0);
		pg_atomic_init_u64(&stat->declined, 0);
		pg_atomic_init_u64(&stat->transient, 0);
		pg_atomic_init_u64(&stat->broken, 0);
		pg_atomic_init_u64(&stat->unknown, 0);
		pg_atomic_init_u64(&stat->latency_us, 0);
		pg_atomic_init_u64(&stat->latency_max_us, 0);
		pg_atomic_init_u32(&stat->connections, 0);
		pg_atomic_init_u32(&stat->in_flight, 0);
		pg_atomic_init_u32(&stat->queued, 0);
		pg_atomic_init_u32(&stat->circuit, 0);
		pg_atomic_init_u64(&stat->connects, 0);
	}
	for (int i = 0; i < SAGA_MAX_COORDINATORS; i++)
	{
		LWLockInitialize(&rings[i].lock, tranche);
		rings[i].coordinator = -1;
	}
	pg_atomic_init_u32(&shared->nfeeds, 0);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
	{
		SagaFeedShared *feed = &shared->feeds[i];

		pg_atomic_init_u32(&shared->databases[i].schedules, 0);
		pg_atomic_init_u32(&feed->asleep, 0);
		pg_atomic_init_u32(&feed->changed, 0);
		pg_atomic_init_u64(&feed->wanted_position, 0);
		pg_atomic_init_u64(&feed->position, 0);
		pg_atomic_init_u64(&feed->looked_at, 0);
		ConditionVariableInit(&feed->moved);
	}
}

static void
attach_segment(void)
{
	bool		found;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	SagaShmem = ShmemInitStruct("saga", segment_size(), &found);
	rings = (SagaRing *) ((char *) SagaShmem + rings_offset());
	waiters = (SagaWaiter *) ((char *) SagaShmem + waiters_offset());
	if (!found)
		initialise_segment(SagaShmem);
	LWLockRelease(AddinShmemInitLock);
}

void
saga_shmem_request(void)
{
	prev_request_hook = shmem_request_hook;
	shmem_request_hook = request_segment;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = attach_segment;
}

bool
saga_preloaded(void)
{
	return SagaShmem != NULL;
}

void
saga_require_preload(void)
{
	if (SagaShmem == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga is not loaded at server start"),
				 errdetail("Sagas are run by background workers, which only a preloaded library can start."),
				 errhint("Add saga to shared_preload_libraries in postgresql.conf (for example: shared_preload_libraries = 'saga') and restart the server.")));
}

/* ---------------------------------------------------------------- slots */

int
saga_slot_index(SagaWorkerSlot *slot)
{
	return (int) (slot - SagaShmem->workers);
}

SagaWorkerSlot *
saga_slot_claim(SagaWorkerKind kind, Oid dboid, int number)
{
	SagaWorkerSlot *found = NULL;

	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_WORKERS && found == NULL; i++)
		if (SagaShmem->workers[i].kind == SAGA_WORKER_NONE)
			found = &SagaShmem->workers[i];
	if (found)
	{
		found->kind = kind;
		found->dboid = dboid;
		found->number = number;
		found->pid = 0;
		found->latch = NULL;
		found->ready = false;
		found->queues = 0;
		found->serves = 0;
		found->generation = SagaShmem->next_generation++;
		found->started_at = GetCurrentTimestamp();
		found->activity[0] = '\0';
		pg_atomic_write_u32(&found->asleep, 0);
		pg_atomic_write_u64(&found->turns, 0);
		pg_atomic_write_u64(&found->items, 0);
		pg_atomic_write_u64(&found->loaded, 0);
		pg_atomic_write_u64(&found->errors, 0);
	}
	LWLockRelease(&SagaShmem->lock);
	return found;
}

SagaWorkerSlot *
saga_slot_attach(int index)
{
	SagaWorkerSlot *slot = &SagaShmem->workers[index];

	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	slot->pid = MyProcPid;
	slot->latch = MyLatch;
	LWLockRelease(&SagaShmem->lock);
	return slot;
}

void
saga_slot_free(SagaWorkerSlot *slot)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	slot->latch = NULL;
	slot->pid = 0;
	slot->ready = false;
	slot->kind = SAGA_WORKER_NONE;
	/* whoever served or was served by this one must notice */
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *other = &SagaShmem->workers[i];

		if (other->kind != SAGA_WORKER_NONE && other->dboid == slot->dboid &&
			other->latch)
			SetLatch(other->latch);
	}
	if (SagaShmem->launcher_latch)
		SetLatch(SagaShmem->launcher_latch);
	LWLockRelease(&SagaShmem->lock);
}

void
saga_wake_launcher(void)
{
	LWLockAcquire(&SagaShmem->lock, LW_SHARED);
	if (SagaShmem->launcher_latch)
		SetLatch(SagaShmem->launcher_latch);
	LWLockRelease(&SagaShmem->lock);
}

/* ---------------------------------------------------------------- rings */

int
saga_bucket(const pg_uuid_t *saga_id)
{
	/* the last bytes of a UUIDv7 are random */
	return saga_id->data[UUID_LEN - 1] % SAGA_BUCKETS;
}

SagaRing *
saga_ring_claim(Oid dboid, int coordinator)
{
	SagaRing   *found = NULL;

	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_COORDINATORS && found == NULL; i++)
		if (rings[i].coordinator < 0)
			found = &rings[i];
	if (found)
	{
		LWLockAcquire(&found->lock, LW_EXCLUSIVE);
		found->dboid = dboid;
		found->coordinator = coordinator;
		found->head = found->tail = 0;
		found->overflow = false;
		LWLockRelease(&found->lock);
	}
	LWLockRelease(&SagaShmem->lock);
	return found;
}

void
saga_ring_release(SagaRing *ring)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	LWLockAcquire(&ring->lock, LW_EXCLUSIVE);
	ring->coordinator = -1;
	LWLockRelease(&ring->lock);
	LWLockRelease(&SagaShmem->lock);
}

int
saga_ring_take(SagaRing *ring, SagaRingEntry *out, int max, bool *overflow)
{
	int			n = 0;

	LWLockAcquire(&ring->lock, LW_EXCLUSIVE);
	while (n < max && ring->head != ring->tail)
		out[n++] = ring->entries[ring->head++ % SAGA_RING_SIZE];
	*overflow = ring->overflow;
	ring->overflow = false;
	LWLockRelease(&ring->lock);
	return n;
}

/* Put what belongs to this ring's coordinator; true if anything did. */
static bool
ring_put(SagaRing *ring, int ncoordinators)
{
	bool		any = false;

	LWLockAcquire(&ring->lock, LW_EXCLUSIVE);
	if (ring->dboid == MyDatabaseId && ring->coordinator >= 0)
		for (int i = 0; i < nannounced; i++)
		{
			SagaRingEntry *entry = &announced[i].entry;

			if (saga_bucket(&entry->saga_id) % ncoordinators != ring->coordinator)
				continue;
			any = true;
			if (ring->tail - ring->head >= SAGA_RING_SIZE)
				ring->overflow = true;
			else
				ring->entries[ring->tail++ % SAGA_RING_SIZE] = *entry;
		}
	LWLockRelease(&ring->lock);
	return any;
}

static void
announce(void)
{
	int			ncoordinators = 0;

	for (int i = 0; i < SAGA_MAX_COORDINATORS; i++)
		if (rings[i].coordinator >= 0 && rings[i].dboid == MyDatabaseId)
			ncoordinators = Max(ncoordinators, rings[i].coordinator + 1);
	if (ncoordinators == 0)
		return;					/* it will read the tables when it comes */

	for (int i = 0; i < SAGA_MAX_COORDINATORS; i++)
	{
		SagaRing   *ring = &rings[i];

		/* an unlocked look; ring_put() looks again under its lock */
		if (ring->coordinator < 0 || ring->dboid != MyDatabaseId ||
			!ring_put(ring, ncoordinators))
			continue;

		for (int w = 0; w < SAGA_MAX_WORKERS; w++)
		{
			SagaWorkerSlot *slot = &SagaShmem->workers[w];
			Latch	   *latch = slot->latch;

			if (slot->kind == SAGA_WORKER_COORDINATOR &&
				slot->dboid == MyDatabaseId &&
				slot->number == ring->coordinator &&
				latch != NULL &&
				pg_atomic_exchange_u32(&slot->asleep, 0) == 1)
				SetLatch(latch);
		}
	}
}

static void
announce_install(void)
{
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->databases[i].dboid == MyDatabaseId)
		{
			SagaShmem->databases[i].status = SAGA_DB_UNKNOWN;
			SagaShmem->databases[i].fresh = true;
		}
	SagaShmem->relist = true;
	if (SagaShmem->launcher_latch)
		SetLatch(SagaShmem->launcher_latch);
	LWLockRelease(&SagaShmem->lock);
}

static void
at_xact_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (nannounced > 0)
				announce();
			if (installed)
				announce_install();
			if (scheduled)
				saga_schedules_wake();
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* found by the safety poll when it ends */
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			nannounced = 0;
			installed = false;
			scheduled = false;
			if (announced)
				pfree(announced);
			announced = NULL;
			maxannounced = 0;
			break;
		default:
			break;
	}
}

static void
at_subxact_end(SubXactEvent event, SubTransactionId mine,
			   SubTransactionId parent, void *arg)
{
	int			kept = 0;

	if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (int i = 0; i < nannounced; i++)
			if (announced[i].subxact == mine)
				announced[i].subxact = parent;
	}
	else if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		for (int i = 0; i < nannounced; i++)
			if (announced[i].subxact != mine)
				announced[kept++] = announced[i];
		nannounced = kept;
	}
}

static void
register_callbacks(void)
{
	if (callbacks_registered)
		return;
	RegisterXactCallback(at_xact_end, NULL);
	RegisterSubXactCallback(at_subxact_end, NULL);
	callbacks_registered = true;
}

void
saga_installed_at_commit(void)
{
	if (SagaShmem == NULL)
		return;
	register_callbacks();
	installed = true;
}

void
saga_schedules_wake_at_commit(void)
{
	if (SagaShmem == NULL)
		return;
	register_callbacks();
	scheduled = true;
}

void
saga_wake_at_commit(const pg_uuid_t *saga_id, int64 inbox_id, int32 priority)
{
	register_callbacks();
	if (announced == NULL)
	{
		maxannounced = 16;
		announced = MemoryContextAlloc(TopMemoryContext,
									   sizeof(Announcement) * maxannounced);
	}
	else if (nannounced == maxannounced)
	{
		/* a ring cannot take more: from there on it will scan anyway */
		announced = repalloc_huge(announced,
								  sizeof(Announcement) * maxannounced * 2);
		maxannounced *= 2;
	}
	announced[nannounced].entry.saga_id = *saga_id;
	announced[nannounced].entry.inbox_id = inbox_id;
	announced[nannounced].entry.priority = priority;
	announced[nannounced].subxact = GetCurrentSubTransactionId();
	nannounced++;
}

/* ------------------------------------------------------------ schedules */

static SagaDatabase *
my_database(void)
{
	for (int i = 0; i < SAGA_MAX_DATABASES; i++)
		if (SagaShmem->databases[i].dboid == MyDatabaseId)
			return &SagaShmem->databases[i];
	return NULL;
}

void
saga_schedules_wake(void)
{
	SagaDatabase *database;

	LWLockAcquire(&SagaShmem->lock, LW_SHARED);
	database = my_database();
	if (database)
		pg_atomic_write_u32(&database->schedules, 1);
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->kind == SAGA_WORKER_COORDINATOR && slot->number == 0 &&
			slot->dboid == MyDatabaseId && slot->latch)
			SetLatch(slot->latch);
	}
	LWLockRelease(&SagaShmem->lock);
}

bool
saga_schedules_changed(void)
{
	SagaDatabase *database = my_database();	/* unlocked: it is there while we
											 * are */

	return database && pg_atomic_read_u32(&database->schedules) != 0 &&
		pg_atomic_exchange_u32(&database->schedules, 0) != 0;
}

/* -------------------------------------------------------------- waiters */

SagaWaiter *
saga_waiter_register(const pg_uuid_t *saga_id)
{
	SagaWaiter *found = NULL;

	LWLockAcquire(&SagaShmem->waiter_lock, LW_EXCLUSIVE);
	for (int i = 0; i < SagaShmem->maxwaiters && found == NULL; i++)
		if (waiters[i].latch == NULL)
			found = &waiters[i];
	if (found)
	{
		found->saga_id = *saga_id;
		found->latch = MyLatch;
		pg_atomic_fetch_add_u32(&SagaShmem->nwaiters, 1);
	}
	LWLockRelease(&SagaShmem->waiter_lock);
	return found;
}

void
saga_waiter_forget(SagaWaiter *waiter)
{
	if (waiter == NULL)
		return;
	LWLockAcquire(&SagaShmem->waiter_lock, LW_EXCLUSIVE);
	waiter->latch = NULL;
	pg_atomic_fetch_sub_u32(&SagaShmem->nwaiters, 1);
	LWLockRelease(&SagaShmem->waiter_lock);
}

void
saga_waiters_wake(const pg_uuid_t *ids, int n)
{
	uint32		left = pg_atomic_read_u32(&SagaShmem->nwaiters);

	if (left == 0 || n == 0)
		return;
	LWLockAcquire(&SagaShmem->waiter_lock, LW_SHARED);
	for (int i = 0; i < SagaShmem->maxwaiters && left > 0; i++)
	{
		if (waiters[i].latch == NULL)
			continue;
		left--;
		for (int k = 0; k < n; k++)
			if (memcmp(&waiters[i].saga_id, &ids[k], UUID_LEN) == 0)
			{
				SetLatch(waiters[i].latch);
				break;
			}
	}
	LWLockRelease(&SagaShmem->waiter_lock);
}

/* --------------------------------------------------------- participants */

SagaParticipantStat *
saga_participant_stat(Oid serverid)
{
	static SagaParticipantStat overflow;
	SagaParticipantStat *found = NULL;

	if (SagaShmem == NULL)
		return &overflow;
	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_PARTICIPANTS && found == NULL; i++)
	{
		SagaParticipantStat *stat = &SagaShmem->participants[i];

		if (stat->dboid == MyDatabaseId && stat->serverid == serverid)
			found = stat;
	}
	for (int i = 0; i < SAGA_MAX_PARTICIPANTS && found == NULL; i++)
	{
		SagaParticipantStat *stat = &SagaShmem->participants[i];

		if (!OidIsValid(stat->serverid))
		{
			stat->dboid = MyDatabaseId;
			stat->serverid = serverid;
			found = stat;
		}
	}
	LWLockRelease(&SagaShmem->lock);
	return found ? found : &overflow;
}
