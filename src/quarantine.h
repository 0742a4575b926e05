/*
 * quarantine.h
 *		Which projection was being worked on when a process died.
 */
#ifndef SAGA_QUARANTINE_H
#define SAGA_QUARANTINE_H

#include "postgres.h"

/* One lane a process: the projector's and the filler's. */
typedef enum SagaLane
{
	SAGA_LANE_PROJECTOR,
	SAGA_LANE_FILLER,
	SAGA_LANES
} SagaLane;

#define SAGA_QUARANTINE_AFTER 3 /* deaths in a row, with no success between */

extern void saga_quarantine_open(void);

/*
 * The projection on which the process of this lane has died so often that it
 * is not to be tried again, or 0; forgets it.
 */
extern int64 saga_quarantine_suspect(SagaLane lane);

extern void saga_quarantine_enter(SagaLane lane, int64 projection);
extern void saga_quarantine_leave(SagaLane lane);

#endif							/* SAGA_QUARANTINE_H */
