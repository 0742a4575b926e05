/*
 * projection_stat.h
 *		Counters and progress of projections, and requests to check one: what
 *		the projector and the filler tell, in shared memory.
 *
 * Written by the workers of the database without a lock; all may be lost at
 * any instant, and starts from nought with the server.
 */
#ifndef SAGA_PROJECTION_STAT_H
#define SAGA_PROJECTION_STAT_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "port/atomics.h"
#include "storage/latch.h"

#define SAGA_MAX_PROJECTION_STATS	512
#define SAGA_MAX_CHECKS				32

#define SAGA_CHANGED_UNKNOWN		PG_UINT64_MAX	/* no batch counted yet */

/* What a fill or rebuild is doing, and what 'done' and 'total' count. */
typedef enum SagaFillPhase
{
	SAGA_PHASE_NONE,
	SAGA_PHASE_WAITING,			/* for transactions that run: transactions */
	SAGA_PHASE_FILLING,			/* the query is run: stages */
	SAGA_PHASE_COMPARING,		/* rebuild by difference: stages */
	SAGA_PHASE_CATCHING_UP,		/* with what was committed meanwhile: bytes */
} SagaFillPhase;

typedef struct SagaProjectionStat
{
	Oid			dboid;
	int64		id;				/* of the projection; 0: free */
	pg_atomic_uint64 batches;	/* in which it had changes */
	pg_atomic_uint64 changed_after; /* where the feed stood before the last of
									 * them */
	pg_atomic_uint64 statements;	/* of its program that ran */
	pg_atomic_uint64 rows_in;	/* changed rows of its sources */
	pg_atomic_uint64 rows_out;	/* rows written to storage */
	pg_atomic_uint64 recomputed;	/* batches that some stage met by difference */
	pg_atomic_uint64 errors;
	pg_atomic_uint64 waiting;	/* transactions decoded and not yet applied */
	pg_atomic_uint64 last_batch_us;
	pg_atomic_uint64 max_batch_us;
	pg_atomic_uint64 last_batch_at; /* TimestampTz */
	pg_atomic_uint32 phase;		/* SagaFillPhase */
	pg_atomic_uint64 phase_began;	/* TimestampTz */
	pg_atomic_uint64 done;
	pg_atomic_uint64 total;
} SagaProjectionStat;

extern void saga_projection_stat_request(void); /* from _PG_init, preloading */

/* ---- workers ---- */

/* This database's entry; never NULL (a dummy of this process's if full). */
extern SagaProjectionStat *saga_projection_stat(int64 id);
extern void saga_projection_stat_forget(int64 id);

/* Enter a phase: sets when it began, done := 0.  NONE when all is over. */
extern void saga_projection_phase(int64 id, SagaFillPhase phase, uint64 total);

/*
 * A batch was applied to it.  By the projector, before it publishes the
 * position of this batch.
 */
extern void saga_projection_count(int64 id, int64 statements, int64 rows_in,
								  int64 rows_out, bool recomputed, int64 us);

/*
 * Checks that sessions wait for.  The projector takes them when it has a
 * snapshot at which the projection stands, and answers: error NULL, or why
 * not.  Answering one that the session has given up is harmless.
 */
typedef struct SagaCheckTicket
{
	int			slot;
	uint64		number;
	int64		id;				/* of the projection */
} SagaCheckTicket;

extern bool saga_check_pending(void);	/* is a batch wanted for one? */
extern bool saga_check_take(SagaCheckTicket *ticket);
extern void saga_check_answer(const SagaCheckTicket *ticket, int64 missing,
							  int64 extra, XLogRecPtr position,
							  TimestampTz at, const char *error);

/* ---- sessions ---- */

typedef struct SagaCheckAnswer
{
	int64		missing;
	int64		extra;
	XLogRecPtr	position;
	TimestampTz at;
	char	   *error;			/* NULL: it was done */
} SagaCheckAnswer;

/*
 * Ask for a check and wait for the answer, as long as the session may.  False
 * if too many sessions ask already.
 */
extern bool saga_check_ask(int64 id, SagaCheckAnswer *answer);

#endif							/* SAGA_PROJECTION_STAT_H */
