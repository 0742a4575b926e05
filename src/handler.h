/*
 * handler.h
 *		Handlers: functions of users that are called for each committed row
 *		change of a table, in commit order, exactly once in effect.
 *
 * Exactly once, because a handler's position is committed together with what
 * its calls wrote.  In commit order, because a transaction is handled only
 * when all earlier ones that it cares for are: the longest prefix whose
 * transactions are all visible.  So its position is one point of the WAL,
 * other than that of a projection, which may be ahead of it.
 */
#ifndef SAGA_HANDLER_H
#define SAGA_HANDLER_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"

#include "feed.h"

typedef enum SagaHandlerState
{
	SAGA_H_STARTING,			/* its table is not decoded for it yet */
	SAGA_H_FOLLOWING,
	SAGA_H_PAUSED,
	SAGA_H_PARKED,
} SagaHandlerState;

/* A row of saga.handler. */
typedef struct SagaHandler
{
	MemoryContext context;
	int64		id;
	char	   *name;
	Oid			source;
	Oid			owner;
	int			operations;		/* mask of SAGA_HANDLES_* */
	Oid			function;
	char	   *search_path;
	SagaHandlerState state;
	bool		lost;			/* parked, and changes are missing for good */
	char	   *identity;		/* of the feed that position belongs to, or "" */
	XLogRecPtr	position;		/* done up to and with this commit; Invalid: it
								 * has not started */
	XLogRecPtr	poison;			/* the commit it is parked on, or Invalid */
	char	   *reason;
	char	   *sqlstate;

	int64		calls;			/* since saga_handler_begin() */
	int			attempts;		/* at the next transaction */
	bool		moved;			/* the row is to be written */
} SagaHandler;

#define SAGA_HANDLES_INSERT		1
#define SAGA_HANDLES_UPDATE		2
#define SAGA_HANDLES_DELETE		4

/* Their words, as in the row; 22023 for others, 22004 for null. */
extern int	saga_handler_operations(Datum array);

/* ---- for the projector, in a transaction; each opens SPI by itself ---- */

/*
 * All rows, each in a context of its own below the current one; of *old, those
 * that are still there keep what is not in the row.  Old ones are freed.
 */
extern List *saga_handler_load(List *old);

/* Its table is decoded, whole rows, from this position of this feed on. */
extern void saga_handler_start(SagaHandler *handler, const char *identity,
							   XLogRecPtr position);

/* Changes after its position are gone; or it shall not be tried again. */
extern void saga_handler_lose(SagaHandler *handler, const char *reason);
extern void saga_handler_park(SagaHandler *handler, const char *reason,
							  const char *sqlstate);

/*
 * Must the transaction be kept for it?  True also while it is paused or
 * parked; false before it started and when it lost changes anyhow.
 */
extern bool saga_handler_keeps(const SagaHandler *handler,
							   const SagaFeedTxn *txn);

typedef enum SagaHandlerOutcome
{
	SAGA_HANDLER_DONE,			/* all that the snapshot sees, or nothing to do */
	SAGA_HANDLER_MORE,			/* its time was up */
	SAGA_HANDLER_AGAIN,			/* nobody's fault: try again somewhat later */
	SAGA_HANDLER_PARKED,
} SagaHandlerOutcome;

/*
 * Handle what the handler has not handled of the transactions in feed->txns,
 * in order, up to the first that the snapshot (a pg_snapshot) does not see.
 * Each in a subtransaction, with the rights of the handler's owner; then
 * stores its position.  The transaction need not be the batch's: a later one,
 * READ COMMITTED, spares the function serialization failures, and the batch
 * the function's time.  Whoever changes the row in a session is not waited
 * for; he waits for us.
 *
 * If the transaction does not commit, load again: the fields are ahead then.
 * After it, release the session's advisory locks.
 */
extern SagaHandlerOutcome saga_handler_follow(SagaHandler *handler,
											  SagaFeed *feed, Datum snapshot);

#endif							/* SAGA_HANDLER_H */
