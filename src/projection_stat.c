/*
 * projection_stat.c
 *		Counters and progress of projections, and requests to check one (see
 *		projection_stat.h).
 *
 * Owns a segment of shared memory of its own.  The projector and the filler
 * write counters; sessions read them and leave requests.  Touches no table.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "feed_shared.h"
#include "projection_stat.h"

PG_FUNCTION_INFO_V1(saga_projection_stats);

typedef enum CheckState
{
	CHECK_FREE,
	CHECK_ASKED,
	CHECK_TAKEN,
	CHECK_ANSWERED,
} CheckState;

typedef struct Check
{
	CheckState	state;
	Oid			dboid;
	int64		id;
	uint64		number;			/* tells this request from later ones */
	Latch	   *latch;			/* of who waits */
	pid_t		taker;			/* the projector that took it */
	int64		missing;
	int64		extra;
	XLogRecPtr	position;
	TimestampTz at;
	char		error[512];		/* empty: done */
} Check;

typedef struct StatShared
{
	LWLock		lock;			/* entries' owners, checks */
	uint64		next_number;
	pg_atomic_uint32 asked;		/* checks not yet answered, in any database */
	Check		checks[SAGA_MAX_CHECKS];
	SagaProjectionStat entries[SAGA_MAX_PROJECTION_STATS];
} StatShared;

static StatShared *shared = NULL;
static shmem_request_hook_type prev_request_hook = NULL;
static shmem_startup_hook_type prev_startup_hook = NULL;

static const char *const phase_names[] = {
	[SAGA_PHASE_NONE] = NULL,
	[SAGA_PHASE_WAITING] = "waiting",
	[SAGA_PHASE_FILLING] = "filling",
	[SAGA_PHASE_COMPARING] = "comparing",
	[SAGA_PHASE_CATCHING_UP] = "catching up",
};

/* ---- the segment ---- */

static void
request_segment(void)
{
	if (prev_request_hook)
		prev_request_hook();
	RequestAddinShmemSpace(sizeof(StatShared));
	RequestNamedLWLockTranche("saga projection", 1);
}

static void
initialise(SagaProjectionStat *s)
{
	pg_atomic_init_u64(&s->batches, 0);
	pg_atomic_init_u64(&s->changed_after, SAGA_CHANGED_UNKNOWN);
	pg_atomic_init_u64(&s->statements, 0);
	pg_atomic_init_u64(&s->rows_in, 0);
	pg_atomic_init_u64(&s->rows_out, 0);
	pg_atomic_init_u64(&s->recomputed, 0);
	pg_atomic_init_u64(&s->errors, 0);
	pg_atomic_init_u64(&s->waiting, 0);
	pg_atomic_init_u64(&s->last_batch_us, 0);
	pg_atomic_init_u64(&s->max_batch_us, 0);
	pg_atomic_init_u64(&s->last_batch_at, 0);
	pg_atomic_init_u32(&s->phase, SAGA_PHASE_NONE);
	pg_atomic_init_u64(&s->phase_began, 0);
	pg_atomic_init_u64(&s->done, 0);
	pg_atomic_init_u64(&s->total, 0);
}

static void
attach_segment(void)
{
	bool		found;

	if (prev_startup_hook)
		prev_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("saga projection", sizeof(StatShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(StatShared));
		LWLockInitialize(&shared->lock,
						 GetNamedLWLockTranche("saga projection")->lock.tranche);
		shared->next_number = 1;
		pg_atomic_init_u32(&shared->asked, 0);
		for (int i = 0; i < SAGA_MAX_PROJECTION_STATS; i++)
			initialise(&shared->entries[i]);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
saga_projection_stat_request(void)
{
	prev_request_hook = shmem_request_hook;
	shmem_request_hook = request_segment;
	prev_startup_hook = shmem_startup_hook;
	shmem_startup_hook = attach_segment;
}

/* ---- counters ---- */

static SagaProjectionStat *
entry_of(Oid dboid, int64 id)
{
	for (int i = 0; i < SAGA_MAX_PROJECTION_STATS; i++)
		if (shared->entries[i].dboid == dboid && shared->entries[i].id == id)
			return &shared->entries[i];
	return NULL;
}

SagaProjectionStat *
saga_projection_stat(int64 id)
{
	static SagaProjectionStat dummy;
	SagaProjectionStat *found;

	if (shared == NULL)
	{
		initialise(&dummy);
		return &dummy;
	}
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	found = entry_of(MyDatabaseId, id);
	if (found == NULL && (found = entry_of(InvalidOid, 0)) != NULL)
	{
		initialise(found);
		found->dboid = MyDatabaseId;
		found->id = id;
	}
	LWLockRelease(&shared->lock);
	if (found == NULL)
	{
		initialise(&dummy);
		found = &dummy;
	}
	return found;
}

void
saga_projection_stat_forget(int64 id)
{
	SagaProjectionStat *found;

	if (shared == NULL)
		return;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	found = entry_of(MyDatabaseId, id);
	if (found)
	{
		found->dboid = InvalidOid;
		found->id = 0;
	}
	LWLockRelease(&shared->lock);
}

void
saga_projection_phase(int64 id, SagaFillPhase phase, uint64 total)
{
	SagaProjectionStat *s = saga_projection_stat(id);

	pg_atomic_write_u64(&s->done, 0);
	pg_atomic_write_u64(&s->total, total);
	pg_atomic_write_u64(&s->phase_began, (uint64) GetCurrentTimestamp());
	pg_atomic_write_u32(&s->phase, phase);
}

void
saga_projection_count(int64 id, int64 statements, int64 rows_in,
					  int64 rows_out, bool recomputed, int64 us)
{
	SagaProjectionStat *s = saga_projection_stat(id);
	XLogRecPtr	position;

	pg_atomic_fetch_add_u64(&s->batches, 1);
	if (saga_projector_position(&position))
		pg_atomic_write_u64(&s->changed_after, position);
	pg_atomic_fetch_add_u64(&s->statements, statements);
	pg_atomic_fetch_add_u64(&s->rows_in, rows_in);
	pg_atomic_fetch_add_u64(&s->rows_out, rows_out);
	if (recomputed)
		pg_atomic_fetch_add_u64(&s->recomputed, 1);
	pg_atomic_write_u64(&s->last_batch_us, (uint64) us);
	if ((uint64) us > pg_atomic_read_u64(&s->max_batch_us))
		pg_atomic_write_u64(&s->max_batch_us, (uint64) us);
	pg_atomic_write_u64(&s->last_batch_at, (uint64) GetCurrentTimestamp());
}

static Datum
time_datum(uint64 at, bool *isnull)
{
	*isnull = at == 0;
	return TimestampTzGetDatum((TimestampTz) at);
}

/*
 * () -> (id, batches, statements, rows_in, rows_out, recomputed, errors,
 * waiting, last_batch_us, max_batch_us, last_batch_at, phase, phase_began,
 * done, total)
 */
Datum
saga_projection_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (shared == NULL)
		return (Datum) 0;
	for (int i = 0; i < SAGA_MAX_PROJECTION_STATS; i++)
	{
		SagaProjectionStat *s = &shared->entries[i];
		const char *phase;
		Datum		v[15];
		bool		n[15] = {0};

		if (s->id == 0 || s->dboid != MyDatabaseId)
			continue;
		phase = phase_names[Min(pg_atomic_read_u32(&s->phase), SAGA_PHASE_CATCHING_UP)];
		v[0] = Int64GetDatum(s->id);
		v[1] = Int64GetDatum((int64) pg_atomic_read_u64(&s->batches));
		v[2] = Int64GetDatum((int64) pg_atomic_read_u64(&s->statements));
		v[3] = Int64GetDatum((int64) pg_atomic_read_u64(&s->rows_in));
		v[4] = Int64GetDatum((int64) pg_atomic_read_u64(&s->rows_out));
		v[5] = Int64GetDatum((int64) pg_atomic_read_u64(&s->recomputed));
		v[6] = Int64GetDatum((int64) pg_atomic_read_u64(&s->errors));
		v[7] = Int64GetDatum((int64) pg_atomic_read_u64(&s->waiting));
		v[8] = Int64GetDatum((int64) pg_atomic_read_u64(&s->last_batch_us));
		v[9] = Int64GetDatum((int64) pg_atomic_read_u64(&s->max_batch_us));
		v[10] = time_datum(pg_atomic_read_u64(&s->last_batch_at), &n[10]);
		n[11] = phase == NULL;
		v[11] = phase ? CStringGetTextDatum(phase) : (Datum) 0;
		v[12] = time_datum(pg_atomic_read_u64(&s->phase_began), &n[12]);
		v[13] = Int64GetDatum((int64) pg_atomic_read_u64(&s->done));
		v[14] = Int64GetDatum((int64) pg_atomic_read_u64(&s->total));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, v, n);
	}
	return (Datum) 0;
}

/* ---- checks ---- */

bool
saga_check_pending(void)
{
	bool		found = false;

	if (shared == NULL || pg_atomic_read_u32(&shared->asked) == 0)
		return false;
	LWLockAcquire(&shared->lock, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_CHECKS && !found; i++)
		found = shared->checks[i].state != CHECK_FREE &&
			shared->checks[i].state != CHECK_ANSWERED &&
			shared->checks[i].dboid == MyDatabaseId;
	LWLockRelease(&shared->lock);
	return found;
}

bool
saga_check_take(SagaCheckTicket *ticket)
{
	bool		found = false;

	if (shared == NULL || pg_atomic_read_u32(&shared->asked) == 0)
		return false;
	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_CHECKS && !found; i++)
	{
		Check	   *check = &shared->checks[i];

		/* one that a projector took into its grave is to be done again */
		if (check->dboid == MyDatabaseId &&
			(check->state == CHECK_ASKED ||
			 (check->state == CHECK_TAKEN && check->taker != MyProcPid)))
		{
			check->state = CHECK_TAKEN;
			check->taker = MyProcPid;
			ticket->slot = i;
			ticket->number = check->number;
			ticket->id = check->id;
			found = true;
		}
	}
	LWLockRelease(&shared->lock);
	return found;
}

void
saga_check_answer(const SagaCheckTicket *ticket, int64 missing, int64 extra,
				  XLogRecPtr position, TimestampTz at, const char *error)
{
	Check	   *check = &shared->checks[ticket->slot];

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (check->state == CHECK_TAKEN && check->number == ticket->number)
	{
		check->missing = missing;
		check->extra = extra;
		check->position = position;
		check->at = at;
		strlcpy(check->error, error ? error : "", sizeof(check->error));
		check->state = CHECK_ANSWERED;
		pg_atomic_fetch_sub_u32(&shared->asked, 1);
		SetLatch(check->latch);
	}
	LWLockRelease(&shared->lock);
}

static void
give_up(int code, Datum arg)
{
	Check	   *check = &shared->checks[DatumGetInt32(arg)];

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	if (check->state == CHECK_ASKED || check->state == CHECK_TAKEN)
		pg_atomic_fetch_sub_u32(&shared->asked, 1);
	check->state = CHECK_FREE;
	check->latch = NULL;
	LWLockRelease(&shared->lock);
}

bool
saga_check_ask(int64 id, SagaCheckAnswer *answer)
{
	int			slot = -1;
	bool		answered = false;

	LWLockAcquire(&shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < SAGA_MAX_CHECKS && slot < 0; i++)
		if (shared->checks[i].state == CHECK_FREE)
			slot = i;
	if (slot >= 0)
	{
		Check	   *check = &shared->checks[slot];

		check->state = CHECK_ASKED;
		check->dboid = MyDatabaseId;
		check->id = id;
		check->number = shared->next_number++;
		check->latch = MyLatch;
		pg_atomic_fetch_add_u32(&shared->asked, 1);
	}
	LWLockRelease(&shared->lock);
	if (slot < 0)
		return false;

	PG_ENSURE_ERROR_CLEANUP(give_up, Int32GetDatum(slot));
	{
		while (!answered)
		{
			Check	   *check = &shared->checks[slot];

			saga_projector_kick();
			LWLockAcquire(&shared->lock, LW_SHARED);
			answered = check->state == CHECK_ANSWERED;
			if (answered)
			{
				answer->missing = check->missing;
				answer->extra = check->extra;
				answer->position = check->position;
				answer->at = check->at;
			}
			LWLockRelease(&shared->lock);
			if (answered)
			{
				/* nobody else writes it once it is answered */
				answer->error = check->error[0] ? pstrdup(check->error) : NULL;
				break;
			}
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 1000, saga_wait_event("SagaProjectionCheck"));
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
	}
	PG_END_ENSURE_ERROR_CLEANUP(give_up, Int32GetDatum(slot));
	give_up(0, Int32GetDatum(slot));
	return true;
}
