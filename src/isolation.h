/*
 * isolation.h
 *		Countermeasures for the isolation that sagas lack: semantic locks,
 *		escrow counters, values that are read again.  Called from local
 *		actions; executor.c, dry_run.c tell which saga's action runs, log.c
 *		when sagas have ended.
 */
#ifndef SAGA_ISOLATION_H
#define SAGA_ISOLATION_H

#include "postgres.h"

#include "executor/spi.h"
#include "utils/uuid.h"

#include "machine.h"

/* ---- the local action that runs in this process ---- */

typedef struct SagaLocalAction
{
	pg_uuid_t	saga_id;
	int32		step;			/* step of the state, or a pseudo-node */
	uint8		op;				/* SagaOp */
	bool		alone;			/* no other saga can be waited for */
	bool		took;			/* it left something that its saga's end, or
								 * the step's undo, must see to */
} SagaLocalAction;

/* NULL: none runs. */
extern SagaLocalAction *saga_local_action;

/*
 * Around an action, inside its subtransaction.  end() raises an error if the
 * action wants to wait, whatever it did with the error that told it so.
 */
extern void saga_local_begin(SagaLocalAction *action);
extern void saga_local_end(void);

/* 55000 unless an action runs; 'what' is the function. */
extern SagaLocalAction *saga_local_require(const char *what, bool undo_too);

/*
 * After the action's subtransaction was rolled back: does it wait for another
 * saga?  Then saga_lock_queue() puts it into the queue, in a subtransaction of
 * its own, and says what to answer.
 */
typedef struct SagaLockWait
{
	SagaAnswerKind answer;		/* TRANSIENT, or DECLINED */
	int			retry_ms;
	char	   *message;
} SagaLockWait;

extern bool saga_local_waits(void);
extern void saga_lock_queue(const SagaLocalAction *action, SagaLockWait *wait);

/* Forget a wait that was asked for (its action is over). */
extern void saga_local_reset(void);

/* ---- ends ---- */

typedef struct SagaIsolationEnd
{
	pg_uuid_t	saga_id;
	bool		keeps;			/* reservations become final; else they go */
} SagaIsolationEnd;

/* In the transaction that ends these sagas. */
extern void saga_isolation_end(const SagaIsolationEnd *ends, int n);

/* A step is undone, or about to be run anew: its reservations go. */
extern void saga_isolation_undone(const pg_uuid_t *saga_id, int32 step);

/* ---- base of the three ---- */

/* One of our statements with its plan kept, as the extension's owner. */
typedef struct SagaOwnQuery
{
	SPIPlanPtr	plan;			/* NULL at first */
	const char *sql;
	int			nargs;
	Oid			types[8];
} SagaOwnQuery;

/*
 * Rows are in SPI_tuptable until SPI_finish(): call inside SPI_connect().
 * Nulls may be NULL.  Returns the number of rows.
 */
extern uint64 saga_own_query(SagaOwnQuery *query, Datum *values, const char *nulls);

#endif							/* SAGA_ISOLATION_H */
