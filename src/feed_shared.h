/*
 * feed_shared.h
 *		How sessions wake the projector of their database and wait for it.
 */
#ifndef SAGA_FEED_SHARED_H
#define SAGA_FEED_SHARED_H

#include "postgres.h"

#include "access/xlogdefs.h"

#include "shmem.h"

/* In _PG_init, preloading: every process tells the projector of its commits. */
extern void saga_feed_shared_init(void);

/* This database's entry; claims one if asked to, else NULL if there is none. */
extern SagaFeedShared *saga_feed_shared(bool claim);

/*
 * The set of projections changed: at commit, have a projector run and look.
 */
extern void saga_projector_wake_at_commit(void);

/* Have the projector look now. */
extern void saga_projector_kick(void);

/* The published position; false if no projector runs. */
extern bool saga_projector_position(XLogRecPtr *position);

/*
 * Wait until the position is at or past 'until'; false after timeout_ms.
 * Returns early, with false, if no projector comes within that time.
 */
extern bool saga_projector_wait(XLogRecPtr until, long timeout_ms);

#endif							/* SAGA_FEED_SHARED_H */
