/*
 * projection_read.h
 *		Between the files that readers of projections meet: functions of the
 *		views and of users (projection_read.c), consistent reads
 *		(projection_wait.c).
 */
#ifndef SAGA_PROJECTION_READ_H
#define SAGA_PROJECTION_READ_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "projection_row.h"

typedef enum SagaConsistency
{
	SAGA_READ_EVENTUAL,
	SAGA_READ_SESSION,			/* what this session committed is in it */
	SAGA_READ_STRICT,			/* what anybody committed before is in it */
} SagaConsistency;

/* Install the executor hook; in _PG_init. */
extern void saga_projection_wait_init(void);

/*
 * End of the WAL written so far, as the end of a record (at the top of a page
 * the insert position lies behind a header that may never be flushed).
 */
extern XLogRecPtr saga_wal_end(void);

/*
 * SGC01 if the projection cannot come to hold what was committed before now:
 * paused, parked or stale.
 */
extern void saga_projection_require_upkeep(const SagaProjectionRow *row);

/*
 * Wait until the contents, as seen by snapshots taken from now on, hold all
 * commits before 'until'; false at the time-out.
 */
extern bool saga_projection_wait(int64 id, XLogRecPtr until, TimestampTz end);

/* Let the projector work for a moment. */
extern void saga_projection_pause(void);

#endif							/* SAGA_PROJECTION_READ_H */
